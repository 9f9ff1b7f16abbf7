"""Win rates at equal length: what would be left of a win rate if both answers were as long.

Judges favour longer answers, and a policy can win by that alone. A logistic regression explains each comparison by
the policy and by tanh of the standardised difference in length; with the length term taken out, what is left is the
length-controlled win rate (Dubois et al. 2024, 2404.04475, eq. 2). Their third term, the difficulty of each
instruction, needs many policies to be estimated and is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from cai.evaluate.intervals import draws, spread

PRIOR = 0.5
"""Comparisons of equal length added for each side, so that a policy that won everything has a finite coefficient."""
_RIDGE = 0.01
"""Pull of the length coefficient towards none, in comparisons: too weak to matter unless the data say nothing."""
_ROUNDS = 40
_CHUNK = 250
"""Resamples fitted at once, which bounds the memory."""


class Match(NamedTuple):
    """One decided comparison as this regression sees it."""

    prompt_id: str
    score: float
    """1 where the policy won, 0 where it lost, one half for a tie."""
    gap: int
    """Words by which its answer is longer than the other one."""


def controlled(matches: Sequence[Match], *, seed: int) -> dict[str, Any] | None:
    """Return the length-controlled win rate with its interval clustered by prompt; None without matches.

    It is antisymmetric (exchanging the policies gives one minus it), so a policy has exactly one half against itself.
    `longer_by_one_sd` is the probability that, between policies otherwise equal, the answer longer by one standard
    deviation of the differences (`sd_words`) wins: one half where length does not matter.
    """
    import numpy as np

    if not matches:
        return None
    gaps = np.array([m.gap for m in matches], dtype=float)
    sd = float(gaps.std())
    x = np.tanh(gaps / sd) if sd else np.zeros_like(gaps)
    y = np.array([m.score for m in matches])
    prompts = {id_: i for i, id_ in enumerate(sorted({m.prompt_id for m in matches}))}
    place = np.array([prompts[m.prompt_id] for m in matches])
    whole = _fit(np.ones((1, len(matches))), x, y)[0]
    drawn = np.array(list(draws(len(prompts), seed)), dtype=float)
    fitted = [_fit(drawn[i : i + _CHUNK][:, place], x, y) for i in range(0, len(drawn), _CHUNK)]
    rates = [float(r) for part in fitted for r in _logistic(part[:, 0])]
    return {
        "rate": spread(float(_logistic(whole[0])), rates, len(prompts), no_effect=0.5).as_dict(),
        "longer_by_one_sd": float(_logistic(whole[1] * np.tanh(1.0))),
        "sd_words": sd,
        "mean_gap_words": float(gaps.mean()),
    }


def _logistic(z: Any) -> Any:
    import numpy as np

    return 1 / (1 + np.exp(-z))


def _fit(weights: Any, x: Any, y: Any) -> Any:
    """Return (policy, length) coefficients (R, 2) for R weightings of the matches (R, N), by damped Newton steps."""
    import numpy as np

    at = np.zeros((len(weights), 2))
    for _ in range(_ROUNDS):
        p = _logistic(at[:, :1] + at[:, 1:] * x)
        alone = _logistic(at[:, 0])  # the added comparisons: equal length, one won and one lost in part
        slope = weights * (y - p)
        gradient = np.stack([slope.sum(1) + PRIOR * (1 - 2 * alone), slope @ x - _RIDGE * at[:, 1]], 1)
        bend = weights * p * (1 - p)
        cross = bend @ x
        hessian = np.stack(
            [
                np.stack([bend.sum(1) + 2 * PRIOR * alone * (1 - alone), cross], 1),
                np.stack([cross, bend @ (x * x) + _RIDGE], 1),
            ],
            1,
        )
        step = np.linalg.solve(hessian, gradient[:, :, None])[:, :, 0]
        at += step / np.maximum(1.0, np.abs(step).max(1, keepdims=True))
        if np.abs(step).max() < 1e-9:
            break
    return at
