"""What moves the judge that should not: position, length, lists, its own model's style, revisions."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from cai.audit.families import Families
from cai.evaluate.intervals import ClusteredShare, wilson
from cai.records import Judgment, Question
from cai.trail import Ended

OWN, FAMILY = "written by the judge's own model", "written by a model of the judge's family"
NAMES = ("first shown", "longer", "with a list", OWN, FAMILY, "revision")
"""The answers it is counted how often the judge picks; without an effect it is one half."""


class Effects:
    """Counts judgments by a model that name a winner, prompt by prompt as they come.

    Both orders of a pair and all principles are in the shares; what is said of one prompt is a cluster.
    """

    def __init__(self, questions: Mapping[str, Question], families: Families) -> None:
        self._questions, self._families = questions, families
        self._ours: dict[tuple[Any, ...], tuple[int, int]] = {}
        self._shares = {name: ClusteredShare() for name in NAMES}
        self._prompt_id: str | None = None
        self._n, self._hits = Counter[str](), Counter[str]()  # of this prompt
        self._lean = 0  # of this prompt: questions that picked the first both times, less those that picked the second
        self._both, self._leaning = Counter[str](), Counter[str]()

    def add(
        self, end: Ended, words: tuple[int, int], lists: tuple[bool, bool], authors: tuple[str | None, ...]
    ) -> None:
        """Count one comparison, whose arms have so many words, a list or none, and these models as authors."""
        if end.prompt.id != self._prompt_id:
            self._close()
            self._prompt_id = end.prompt.id
        known = _sign(*words), _sign(*lists), int(end.comparison.source == "revision")
        # Modes that grade each answer by itself are asked once: no answer stands first.
        standing = [d for d in end.standing if isinstance(d, Judgment)]
        ordered = {judgment.question_id for judgment in standing if judgment.order == "ba"}
        by_question: dict[str, list[Judgment]] = {}
        for judgment in standing:
            if judgment.verdict in ("a", "b"):
                question = self._questions.get(judgment.question_id)
                if question is not None and question.mode != "check":
                    by_question.setdefault(question.id, []).append(judgment)
                    first = (1 if judgment.order == "ab" else -1) if question.id in ordered else 0
                    self._count(judgment, first, *known, *self._own(question.judge, authors))
        for judgments in by_question.values():
            self._pair({j.order: j.verdict for j in judgments})

    def _own(self, judge: str, authors: tuple[str | None, ...]) -> tuple[int, int]:
        """Return which arm alone is the judge's own, and which alone its family's, as `_count` takes them."""
        key = (judge, *authors)
        if key not in self._ours:
            own, family = zip(*(self._families.same(author, judge) for author in authors), strict=True)
            self._ours[key] = (0, 0) if None in authors else (_sign(*own), _sign(*family))
        return self._ours[key]

    def _count(
        self, judgment: Judgment, first: int, longer: int, listed: int, revised: int, own: int, family: int
    ) -> None:
        """Count one judgment; each sign says which arm stands out: 1 for arm a, -1 for arm b, 0 for neither."""
        sign = 1 if judgment.verdict == "a" else -1
        for name, which in zip(NAMES, (first, longer, listed, own, family, -revised), strict=True):
            if which:
                self._n[name] += 1
                self._hits[name] += sign == which

    def _close(self) -> None:
        """Take the counts of a prompt into the shares."""
        for name, n in self._n.items():
            self._shares[name].add(self._hits[name], n)
        self._n.clear()
        self._hits.clear()
        if self._lean:
            self._leaning["first" if self._lean > 0 else "second"] += 1
        self._lean = 0

    def _pair(self, verdicts: Mapping[str, str]) -> None:
        if len(verdicts) == 2:
            kind = "same arm" if verdicts["ab"] == verdicts["ba"] else "first" if verdicts["ab"] == "a" else "second"
            self._both[kind] += 1
            self._lean += (kind == "first") - (kind == "second")

    def shares(self) -> Iterator[dict[str, Any]]:
        """Yield how often each of `NAMES` is picked, with an interval over prompts; None of nothing."""
        self._close()
        for name, found in self._shares.items():
            low, high = found.interval() or (None, None)
            value = found.n_hits / found.n if found.n else None
            yield {"picks the answer": name, "value": value, "low": low, "high": high, "n": found.n,
                   "n_prompts": found.n_clusters}  # fmt: skip

    def position(self) -> dict[str, Any] | None:
        """Return McNemar's exact test of position over prompts; None where nothing was named in both orders.

        Counted are questions on a comparison that named a winner in both orders: some name the answer shown first
        both times, some the one shown second. Questions on one prompt resemble each other, so that the test is of
        prompts on which more of them name the first against those on which more name the second.
        """
        self._close()
        if not self._both:
            return None
        first, second = self._both["first"], self._both["second"]
        return {
            "test": "McNemar, exact, over prompts",
            "same_arm": self._both["same arm"],
            "first_both_times": first,
            "second_both_times": second,
            "p_value": mcnemar(self._leaning["first"], self._leaning["second"]),
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
