"""How good a reward model is on pairs it was not trained on: accuracy, AUC, calibration, and what length explains.

The scores come from `held_out.jsonl` in the folder of a reward model's training. A pair's label counts as known where
`p_chosen` is not one half; a model with several heads is measured by their mean.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from cai.errors import UserError
from cai.evaluate.intervals import wilson

N_BINS = 10


@dataclass(frozen=True, slots=True)
class Scored:
    """A pair with the rewards of its answers."""

    p_chosen: float
    """The label, from 0 to 1."""
    chosen: float
    """Reward of the answer called chosen."""
    rejected: float
    """Reward of the other one."""
    n_tokens: tuple[int, int]
    """Lengths of the two answers."""

    @property
    def gap(self) -> float:
        """By how much the answer that the label prefers is rewarded more."""
        return (self.chosen - self.rejected) * (1 if self.p_chosen >= 0.5 else -1)


@dataclass(frozen=True, slots=True)
class Bin:
    """Pairs to whose preferred answer the model gives a like probability."""

    low: float
    """From this probability…"""
    n: int
    """How many pairs."""
    said: float
    """Mean probability that the model gave to answer A."""
    was: float
    """Mean label of answer A."""


@dataclass(frozen=True, slots=True)
class Quality:
    """What is known of a reward model from its held-out pairs. None where nothing can be said."""

    n: int
    """Held-out pairs with a known label."""
    accuracy: float | None
    """Share of them whose preferred answer has the greater reward; equal rewards count half."""
    interval: tuple[float, float] | None
    """Wilson 95 % interval of the accuracy."""
    auc: float | None
    """Probability that a preferred answer is rewarded more than a rejected one of any pair (area under the ROC)."""
    log_loss: float | None
    """Mean cross-entropy in nats; ln 2 = 0.693 is what knowing nothing costs."""
    ece: float | None
    """Expected calibration error: mean |said - was| over ten bins of equal width, weighed by their pairs."""
    bins: tuple[Bin, ...]
    """The reliability curve."""
    length_correlation: float | None
    """Pearson correlation of the differences in reward and in length (tokens), chosen minus rejected."""
    longer_wins: float | None
    """Share of pairs in which the model rewards the longer answer more."""
    longer_is_chosen: float | None
    """Share of pairs whose label prefers the longer answer."""
    train_accuracy: float | None
    """The same accuracy on training pairs."""
    gap: float | None
    """Generalisation gap: training accuracy minus held-out accuracy."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return asdict(self)


def read(path: Path) -> dict[str, list[Scored]]:
    """Return the scored pairs of a training by part (`held_out`, `train`). Raises UserError where there are none."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: no held-out scores here ({error}); train with held_out set") from error
    parts: dict[str, list[Scored]] = {"held_out": [], "train": []}
    for row in rows:
        scored = Scored(row["p_chosen"], fmean(row["chosen"]), fmean(row["rejected"]), tuple(row["n_tokens"]))
        parts[row["part"]].append(scored)
    return parts


def quality(held_out: Sequence[Scored], train: Sequence[Scored] = ()) -> Quality:
    """Return the quality of a reward model."""
    known = [s for s in held_out if s.p_chosen != 0.5]
    accuracy, on_train = _accuracy(known), _accuracy([s for s in train if s.p_chosen != 0.5])
    bins = reliability(known)
    differing = [s for s in known if s.n_tokens[0] != s.n_tokens[1]]
    return Quality(
        n=len(known),
        accuracy=accuracy,
        interval=wilson(round(accuracy * len(known)), len(known)) if accuracy is not None else None,
        auc=_auc(known),
        log_loss=fmean(_cross_entropy(s) for s in known) if known else None,
        ece=sum(b.n * abs(b.said - b.was) for b in bins) / len(known) if known else None,
        bins=tuple(bins),
        length_correlation=_correlation(
            [s.chosen - s.rejected for s in known], [float(s.n_tokens[0] - s.n_tokens[1]) for s in known]
        ),
        longer_wins=_mean([(s.chosen > s.rejected) == (s.n_tokens[0] > s.n_tokens[1]) for s in differing]),
        longer_is_chosen=_mean([(s.p_chosen > 0.5) == (s.n_tokens[0] > s.n_tokens[1]) for s in differing]),
        train_accuracy=on_train,
        gap=None if on_train is None or accuracy is None else on_train - accuracy,
    )


def reliability(pairs: Sequence[Scored], n_bins: int = N_BINS) -> list[Bin]:
    """Return the bins that hold pairs, by the probability the model gives to answer A.

    Chosen always coming first would leave nothing to be calibrated, so A is the chosen answer in every other pair.
    """
    held: dict[int, list[tuple[float, float]]] = {}
    for i, pair in enumerate(pairs):
        p, label = _sigmoid(pair.chosen - pair.rejected), pair.p_chosen
        if i % 2:
            p, label = 1 - p, 1 - label
        held.setdefault(min(int(p * n_bins), n_bins - 1), []).append((p, label))
    return [
        Bin(number / n_bins, len(rows), fmean(p for p, _ in rows), fmean(label for _, label in rows))
        for number, rows in sorted(held.items())
    ]


def _accuracy(pairs: Sequence[Scored]) -> float | None:
    return _mean([1.0 if p.gap > 0 else 0.5 if p.gap == 0 else 0.0 for p in pairs])


def _auc(pairs: Sequence[Scored]) -> float | None:
    """Return the rank statistic of Mann and Whitney, all preferred against all rejected answers; ties count half."""
    better = [p.chosen if p.p_chosen > 0.5 else p.rejected for p in pairs]
    worse = [p.rejected if p.p_chosen > 0.5 else p.chosen for p in pairs]
    ranked = sorted([(r, 1) for r in better] + [(r, 0) for r in worse])
    total, start = 0.0, 0
    while start < len(ranked):
        end = start
        while end < len(ranked) and ranked[end][0] == ranked[start][0]:
            end += 1
        total += (start + 1 + end) / 2 * sum(is_better for _, is_better in ranked[start:end])
        start = end
    n = len(pairs)
    return (total - n * (n + 1) / 2) / (n * n) if n else None


def _cross_entropy(pair: Scored) -> float:
    gap = pair.chosen - pair.rejected
    return pair.p_chosen * _softplus(-gap) + (1 - pair.p_chosen) * _softplus(gap)


def _correlation(xs: Sequence[float], ys: Sequence[float]) -> float | None:
    if len(xs) < 3:
        return None
    x0, y0 = fmean(xs), fmean(ys)
    spread = math.sqrt(sum((x - x0) ** 2 for x in xs) * sum((y - y0) ** 2 for y in ys))
    return sum((x - x0) * (y - y0) for x, y in zip(xs, ys, strict=True)) / spread if spread else None


def _sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _softplus(x: float) -> float:
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
