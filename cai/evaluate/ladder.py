"""How strong several policies are, from who won against whom: Bradley–Terry strengths on the Elo scale.

The model is P(one beats other) = 1 / (1 + 10^((Elo other - Elo one) / 400)) (Bradley & Terry 1952), fitted by Hunter's
minorisation-maximisation (2004, eq. 3). A tie is half a win for each side. Every pair of policies that met is given
half a win each way on top, so that a policy that won everything has a large strength and not an infinite one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

from cai.evaluate.intervals import draws, spread

ELO_PER_NAT = 400 / math.log(10)
"""Elo points per unit of log-strength."""
PRIOR = 0.5
"""Wins added each way between policies that met."""
_MOST_ROUNDS = 2000
_STEADY = 1e-7
"""The fit ends once no log-strength moves by more than this in a round."""


class Game(NamedTuple):
    """One decided comparison of two policies' answers to one prompt."""

    prompt_id: str
    one: str
    """A policy's name."""
    other: str
    score: float
    """1 where `one` won, 0 where `other` did, one half for a tie."""


def ladder(games: Sequence[Game], names: Sequence[str], *, seed: int) -> dict[str, Any] | None:
    """Return every policy's Elo above the first of `names`, with intervals clustered by prompt; None without games.

    A policy that no chain of games links to the first one has no strength (`elo` is None). `fit` sets the observed
    score of every pair that met beside the one the strengths foretell: where they differ much, a single ladder does
    not describe these policies.
    """
    import numpy as np

    if not games:
        return None
    wins = _wins(games, names)
    prompts = sorted({game.prompt_id for game in games})
    drawn = np.array(list(draws(len(prompts), seed)), dtype=float)
    strengths = _fit(wins.sum(0)[None])[0]
    resampled = _fit(np.einsum("rp,pij->rij", drawn, wins)) if len(drawn) else drawn
    linked, rows = _linked(wins.sum(0)), []
    for k, name in enumerate(names):
        told = None
        if linked[k] and len(names) > 1:
            elo = spread(
                ELO_PER_NAT * float(strengths[k]), [ELO_PER_NAT * float(s[k]) for s in resampled], len(prompts)
            )
            told = elo.as_dict()
        rows.append({"name": name, "elo": told, **_record(games, name)})
    return {"policies": rows, "fit": _fit_of(wins.sum(0), strengths, names), "n_prompts": len(prompts), "prior": PRIOR}


def foretold(elo_one: float, elo_other: float) -> float:
    """Return the probability (0 to 1) that a policy with the first Elo beats one with the second."""
    return 1 / (1 + 10 ** ((elo_other - elo_one) / 400))


def _wins(games: Sequence[Game], names: Sequence[str]) -> Any:
    """Return wins of row over column for every prompt (P, K, K), ties as halves."""
    import numpy as np

    place = {name: k for k, name in enumerate(names)}
    prompts = {id_: p for p, id_ in enumerate(sorted({game.prompt_id for game in games}))}
    wins = np.zeros((len(prompts), len(names), len(names)))
    for game in games:
        p, i, j = prompts[game.prompt_id], place[game.one], place[game.other]
        wins[p, i, j] += game.score
        wins[p, j, i] += 1 - game.score
    return wins


def _fit(wins: Any) -> Any:
    """Return log-strengths (R, K) for R tables of wins (R, K, K), the first policy's at 0."""
    import numpy as np

    met = (wins + wins.transpose(0, 2, 1)) > 0
    wins = wins + PRIOR * met
    played = wins + wins.transpose(0, 2, 1)
    won, theta = wins.sum(2), np.zeros(wins.shape[:2])
    for _ in range(_MOST_ROUNDS):
        p = np.exp(theta)
        expected = (played / (p[:, :, None] + p[:, None, :])).sum(2)
        fresh = np.log(np.divide(won, expected, out=np.ones_like(won), where=expected > 0))
        fresh -= fresh[:, :1]
        moved, theta = np.abs(fresh - theta).max(), fresh
        if moved < _STEADY:
            break
    return theta


def _linked(wins: Any) -> list[bool]:
    """Return, for every policy, whether games link it to the first one."""
    met, found, fresh = (wins + wins.T) > 0, {0}, [0]
    while fresh:
        here = fresh.pop()
        new = {int(k) for k in met[here].nonzero()[0]} - found
        found |= new
        fresh += new
    return [k in found for k in range(len(wins))]


def _record(games: Sequence[Game], name: str) -> dict[str, int]:
    own = [g.score if g.one == name else 1 - g.score for g in games if name in (g.one, g.other)]
    return {"games": len(own), "wins": own.count(1.0), "ties": own.count(0.5), "losses": own.count(0.0)}


def _fit_of(wins: Any, strengths: Any, names: Sequence[str]) -> list[dict[str, Any]]:
    told = []
    for i, j in combinations(range(len(names)), 2):
        n = float(wins[i, j] + wins[j, i])
        if n:
            expected = foretold(ELO_PER_NAT * float(strengths[i]), ELO_PER_NAT * float(strengths[j]))
            pair = {"one": names[i], "other": names[j], "games": round(n)}
            told.append(pair | {"score": float(wins[i, j]) / n, "foretold": expected})
    return told
