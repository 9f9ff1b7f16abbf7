"""How principles stand to each other in their votes: who disagrees, who repeats whom, who never decides, who prevails.

Only votes that name a side count. A finding is made where a Wilson bound at 99.9% clears its threshold, since a hundred
pairs are looked at together; with few comparisons nothing is found, and the matrix still says what was seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from typing import Any

from cai.evaluate.intervals import wilson
from cai.stages.settle import Vote
from cai.trail import Ended

LEVEL = 0.999
MOST_REDUNDANT = 0.15
"""Two principles that surely disagree on less than this share of their common votes are called redundant."""
LEAST_OPPOSED = 0.6
"""Two that surely disagree on more than this share are called opposed; strangers disagree on one half."""
MOST_SILENT = 0.15
"""A principle that surely names a side on less than this share of the comparisons it is due on never decides."""
LEAST_OVERRULING = 0.8
"""One that surely has its way in more than this share of its disagreements with another always overrules it."""


class Conflicts:
    """Counts votes while comparisons pass by."""

    def __init__(self, tie_margin: float) -> None:
        self._margin = tie_margin
        self._weights: dict[str, float] = {}
        self.due: Counter[str] = Counter()
        self.named: Counter[str] = Counter()
        """Comparisons on which a principle names a side."""
        self.tips: Counter[str] = Counter()
        """Of these, those whose label would be another without its vote."""
        self._both: Counter[tuple[str, str]] = Counter()
        self._against: Counter[tuple[str, str]] = Counter()
        self._prevails: Counter[tuple[str, str]] = Counter()
        """By (winner, loser): disagreements in which the label sides with the winner."""
        self._decided: Counter[tuple[str, str]] = Counter()
        """Disagreements on comparisons whose label names a side."""

    def add(self, end: Ended) -> None:
        """Count the votes of one comparison. A person's override is passed over: this is about the principles."""
        votes = [v for v in end.settled.votes if v.stand == "votes" and v.p_a is not None]
        label = self._label(votes)
        for vote in end.settled.votes:
            self._weights[vote.principle_id] = vote.weight
            self.due[vote.principle_id] += 1
        sides = {v.principle_id: "a" if v.p_a > 0.5 else "b" for v in votes if not v.is_tie and v.p_a is not None}
        for vote in votes:
            if vote.principle_id in sides:
                self.named[vote.principle_id] += 1
                self.tips[vote.principle_id] += self._label([v for v in votes if v is not vote]) != label
        for one, other in combinations(sorted(sides), 2):
            self._pair(one, other, sides, label)

    def _pair(self, one: str, other: str, sides: dict[str, str], label: str) -> None:
        self._both[one, other] += 1
        if sides[one] == sides[other]:
            return
        self._against[one, other] += 1
        if label in ("a", "b"):
            self._decided[one, other] += 1
            winner, loser = (one, other) if sides[one] == label else (other, one)
            self._prevails[winner, loser] += 1

    def _label(self, votes: Sequence[Vote]) -> str:
        weight = sum(v.weight for v in votes)
        if not weight:
            return "none"
        p_a = sum(v.weight * (v.p_a or 0.0) for v in votes) / weight
        return "tie" if abs(p_a - 0.5) <= self._margin else "a" if p_a > 0.5 else "b"

    def as_dict(self, order: Sequence[str]) -> dict[str, Any]:
        """Return the counts, the matrix and the findings; `order` names the principles as the constitution does."""
        ids = [id_ for id_ in order if id_ in self.due]
        return {
            "principles": [self._principle(id_) for id_ in ids],
            "matrix": [[self._cell(one, other) for other in ids] for one in ids],
            "redundant": [pair for pair in self._pairs(ids) if self._high(pair) <= MOST_REDUNDANT],
            "opposed": [pair for pair in self._pairs(ids) if self._low(pair) >= LEAST_OPPOSED],
            "silent": [id_ for id_ in ids if self._is_silent(id_)],
            "overruled": [found for one in ids for other in ids if one != other and (found := self._rule(one, other))],
        }

    def _principle(self, id_: str) -> dict[str, Any]:
        return {
            "principle": id_,
            "weight": self._weights[id_],
            "due": self.due[id_],
            "named": self.named[id_],
            "tips": _share(self.tips[id_], self.named[id_]),
        }

    def _cell(self, one: str, other: str) -> dict[str, Any] | None:
        """Return how often two disagree; None for a principle with itself."""
        if one == other:
            return None
        key = (one, other) if one < other else (other, one)
        both = self._both[key]
        return {"both": both, "against": self._against[key], "share": self._against[key] / both if both else None}

    def _pairs(self, ids: Sequence[str]) -> list[dict[str, Any]]:
        found = []
        for one, other in combinations(ids, 2):
            cell = self._cell(one, other)
            if cell and cell["both"]:
                found.append({"principles": [one, other], **cell})
        return found

    @staticmethod
    def _high(pair: dict[str, Any]) -> float:
        return (wilson(pair["against"], pair["both"], level=LEVEL) or (0.0, 1.0))[1]

    @staticmethod
    def _low(pair: dict[str, Any]) -> float:
        return (wilson(pair["against"], pair["both"], level=LEVEL) or (0.0, 1.0))[0]

    def _is_silent(self, id_: str) -> bool:
        interval = wilson(self.named[id_], self.due[id_], level=LEVEL)
        return interval is not None and interval[1] <= MOST_SILENT

    def _rule(self, one: str, other: str) -> dict[str, Any] | None:
        """Return the finding that `other` always overrules `one`, or None."""
        key = (one, other) if one < other else (other, one)
        n, wins = self._decided[key], self._prevails[other, one]
        interval = wilson(wins, n, level=LEVEL)
        if interval is None or interval[0] < LEAST_OVERRULING:
            return None
        return {"principle": one, "by": other, "n": n, "share": wins / n}


def _share(n_hits: int, n: int) -> dict[str, Any] | None:
    interval = wilson(n_hits, n)
    return None if interval is None else {"value": n_hits / n, "low": interval[0], "high": interval[1], "n": n}
