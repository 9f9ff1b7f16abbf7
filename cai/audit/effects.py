"""What moves the judge that should not: position, length, lists, its own model's style, revisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cai.evaluate.intervals import wilson
from cai.records import Judgment, Question
from cai.trail import Ended

NAMES = ("first shown", "longer", "with a list", "written by the judge's own model", "revision")
"""The answers it is counted how often the judge picks; without an effect it is one half."""


class Effects:
    """Counts judgments by a model that name a winner. Both orders of a pair are in the shares."""

    def __init__(self, questions: Mapping[str, Question]) -> None:
        self._questions = questions
        self._n, self._hits = Counter[str](), Counter[str]()
        self._both = Counter[str]()

    def add(
        self, end: Ended, words: tuple[int, int], lists: tuple[bool, bool], authors: tuple[str | None, ...]
    ) -> None:
        """Count one comparison, whose arms have so many words, a list or none, and these models as authors."""
        known = _sign(*words), _sign(*lists), int(end.comparison.source == "revision")
        by_question: dict[str, list[Judgment]] = {}
        for judgment in end.decisions:
            if isinstance(judgment, Judgment) and judgment.verdict in ("a", "b"):
                question = self._questions.get(judgment.question_id)
                if question is not None and question.mode != "check":
                    by_question.setdefault(question.id, []).append(judgment)
                    own = 0 if None in authors else _sign(*(author == question.judge for author in authors))
                    first = (1 if judgment.order == "ab" else -1) if question.has_position else 0
                    self._count(judgment, first, *known, own)
        for judgments in by_question.values():
            self._pair({j.order: j.verdict for j in judgments})

    def _count(self, judgment: Judgment, first: int, longer: int, listed: int, revised: int, own: int) -> None:
        """Count one judgment; each sign says which arm stands out: 1 for arm a, -1 for arm b, 0 for neither."""
        sign = 1 if judgment.verdict == "a" else -1
        for name, which in zip(NAMES, (first, longer, listed, own, -revised), strict=True):
            if which:
                self._n[name] += 1
                self._hits[name] += sign == which

    def _pair(self, verdicts: Mapping[str, str]) -> None:
        if len(verdicts) == 2:
            kind = "same arm" if verdicts["ab"] == verdicts["ba"] else "first" if verdicts["ab"] == "a" else "second"
            self._both[kind] += 1

    def shares(self) -> Iterator[dict[str, Any]]:
        """Yield how often each of `NAMES` is picked, with Wilson intervals; None of nothing."""
        for name in NAMES:
            yield {"picks the answer": name} | (
                share(self._hits[name], self._n[name]) or {"value": None, "low": None, "high": None, "n": 0}
            )

    def position(self) -> dict[str, Any] | None:
        """Return McNemar's exact test of position; None where nothing was named in both orders.

        Counted are questions on a comparison that named a winner in both orders. Those that name the answer shown
        first both times, against those that name the one shown second, are as often one as the other without an
        effect. Questions on one pair are taken as independent: where they are not, `p_value` is too small.
        """
        if not self._both:
            return None
        first, second = self._both["first"], self._both["second"]
        return {
            "test": "McNemar, exact",
            "same_arm": self._both["same arm"],
            "first_both_times": first,
            "second_both_times": second,
            "p_value": mcnemar(first, second),
        }


def mcnemar(n_one: int, n_other: int) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) for two discordant counts, 0 to 1; 1 of none."""
    n, least = n_one + n_other, min(n_one, n_other)
    if n_one == n_other:
        return 1.0
    terms = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(least + 1))
    return min(1.0, 2 * math.fsum(math.exp(t - n * math.log(2)) for t in terms))


def share(hits: int, n: int) -> dict[str, Any] | None:
    """Return hits among n with their 95 % Wilson interval; None of nothing."""
    interval = wilson(hits, n)
    return None if interval is None else {"value": hits / n, "low": interval[0], "high": interval[1], "n": n}


def _sign(a: float, b: float) -> int:
    return (a > b) - (a < b)
