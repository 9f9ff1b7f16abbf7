"""How far the judge can be believed: where its two orders agree, what it favours, and what it left undecided.

Everything is counted per principle, since a judge that knows one thing well may know another not at all. Principles
decided by code vote too; the figures that are about a judge's habits leave them out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cai import checks
from cai.evaluate.intervals import wilson
from cai.records import Judgment, Question
from cai.stages.settle import Vote
from cai.trail import Ended, RunView

LEAST_CONSISTENCY = 0.65
"""A judge whose two orders agree on a smaller share than this is called weak; a coin agrees on one half."""
MOST_ONE_LETTER = 0.8
"""A judge that picks one letter in a larger share of its verdicts than this is called weak."""
MOST_UNUSABLE = 0.2
"""A judge with a larger share of invalid or refused judgments than this is called weak."""
LEAST_VERDICTS = 10
"""Below so many verdicts nothing is said about a judge's habits."""


@dataclass
class Tally:
    """What was counted about one principle, or about all that a model judged."""

    principle: str
    """Its id, or `all`."""
    judged_by: str
    """`code`, or the identity of the judging model."""
    due: int = 0
    """Comparisons that it was due on."""
    stands: Counter[str] = field(default_factory=Counter)
    """Comparisons by how it stood: votes, abstains, refused, invalid, not_applicable, missing."""
    wins: Counter[str] = field(default_factory=Counter)
    """Votes by winner: a, b, tie."""
    judgments: int = 0
    """Decisions in all, one per order."""
    unusable: Counter[str] = field(default_factory=Counter)
    """Decisions without a usable verdict, by reason."""
    flagged: int = 0
    """Decisions on a pair in which something looked like an attempt to steer the judge."""
    both_orders: int = 0
    """Comparisons on which both orders gave a usable verdict."""
    agreed: int = 0
    """Of these, those whose orders do not name different winners."""
    named: int = 0
    """Usable verdicts that name a winner, of questions asked in both orders."""
    picked_first: int = 0
    """Of these, those for the answer shown first, as A."""
    unequal: int = 0
    """Usable verdicts that name a winner between answers of different length."""
    picked_longer: int = 0
    """Of these, those for the longer one."""
    prior: float | None = None
    """Log-odds of the first letter (of yes, under a rubric's first question) that were taken off its verdicts (nats),
    of a panel those of its first member that leans; None where none were."""

    @property
    def by_model(self) -> bool:
        """Whether a model judged it."""
        return self.judged_by != "code"

    @property
    def consistency(self) -> float | None:
        """Share of comparisons whose two orders agree; None without any."""
        return self.agreed / self.both_orders if self.both_orders else None

    def add(self, vote: Vote, judgments: Iterable[Judgment], lengths: tuple[int, int]) -> None:
        """Count one principle's part in one comparison whose arms have these lengths in words."""
        judgments = list(judgments)
        self.due += 1
        self.stands[vote.stand] += 1
        if vote.stand == "votes" and vote.p_a is not None:
            self.wins["tie" if vote.is_tie else "a" if vote.p_a > 0.5 else "b"] += 1
        verdicts = []
        # Modes that grade each answer by itself are asked once: no answer stands first.
        is_ordered = len({judgment.order for judgment in judgments}) == 2
        for judgment in judgments:
            self.judgments += 1
            self.flagged += judgment.flag is not None
            taken_off = (reading.prior for reading in (judgment, *judgment.parts))
            self.prior = next((prior for prior in taken_off if prior is not None), self.prior)
            if judgment.usable:
                verdicts.append(judgment.verdict)
                self._habit(judgment, lengths, is_ordered)
            else:
                self.unusable[judgment.reason or judgment.verdict] += 1
        if self.by_model and len(verdicts) == 2:
            self.both_orders += 1
            self.agreed += set(verdicts) != {"a", "b"}

    def _habit(self, judgment: Judgment, lengths: tuple[int, int], is_ordered: bool) -> None:
        if not self.by_model or judgment.verdict not in ("a", "b"):
            return
        if is_ordered:
            self.named += 1
            self.picked_first += judgment.order.startswith(judgment.verdict)
        if lengths[0] != lengths[1]:
            self.unequal += 1
            self.picked_longer += (judgment.verdict == "a") == (lengths[0] > lengths[1])

    def merge(self, other: Tally) -> None:
        """Add another tally's counts to this one's."""
        for name, value in vars(other).items():
            if isinstance(value, (int, Counter)):
                setattr(self, name, getattr(self, name) + value)

    def as_dict(self) -> dict[str, Any]:
        """Return the counts and the shares made of them; a share of nothing is None."""
        decided = self.wins["a"] + self.wins["b"]
        return {
            "principle": self.principle,
            "judged_by": self.judged_by,
            "due": self.due,
            "votes": self.stands["votes"],
            "abstained": self.stands["abstains"],
            "invalid": self.stands["invalid"],
            "refused": self.stands["refused"],
            "not_applicable": self.stands["not_applicable"],
            "missing": self.stands["missing"],
            "ties": self.wins["tie"],
            "for_a": self.wins["a"],
            "for_b": self.wins["b"],
            "decided": _share(decided, self.due),
            "judgments": self.judgments,
            "unusable": dict(sorted(self.unusable.items())),
            "unusable_share": _share(sum(self.unusable.values()), self.judgments),
            "flagged": self.flagged,
            "consistency": _with_interval(self.agreed, self.both_orders),
            "picked_first": _with_interval(self.picked_first, self.named),
            "picked_longer": _with_interval(self.picked_longer, self.unequal),
            "prior": self.prior,
        }


def _share(n: int, of: int) -> float | None:
    return n / of if of else None


def _with_interval(n: int, of: int) -> dict[str, Any] | None:
    interval = wilson(n, of)
    return None if interval is None else {"value": n / of, "low": interval[0], "high": interval[1], "hits": n, "n": of}


class JudgeCount:
    """Counts every principle while somebody goes through the comparisons of a phase."""

    def __init__(self, questions: Mapping[str, Question]) -> None:
        self._questions = questions
        self._tallies: dict[str, Tally] = {}

    def add(self, end: Ended, lengths: tuple[int, int] | None = None) -> None:
        """Count one comparison, whose answers have so many words (None: they are counted here)."""
        judgments = {d.id: d for d in end.decisions if isinstance(d, Judgment)}
        lengths = lengths or (checks.count_words(end.arms[0].text), checks.count_words(end.arms[1].text))
        for vote in end.settled.votes:
            rests_on = [judgments[id_] for id_ in vote.judgment_ids]
            self._tally(vote.principle_id, rests_on).add(vote, rests_on, lengths)

    def _tally(self, principle_id: str, judgments: list[Judgment]) -> Tally:
        if principle_id not in self._tallies:
            self._tallies[principle_id] = Tally(principle_id, "")
        tally = self._tallies[principle_id]
        if judgments and not tally.judged_by:
            question = self._questions.get(judgments[0].question_id)
            tally.judged_by = question.judge if question else "unknown"
        return tally

    @property
    def tallies(self) -> list[Tally]:
        """One tally per principle, in the order in which they were met."""
        return list(self._tallies.values())

    def as_dict(self) -> dict[str, Any]:
        """Return every principle's figures, the judge model's over all of them, and what makes it weak."""
        whole = Tally("all", "")
        for tally in self.tallies:
            if tally.by_model:
                whole.judged_by = tally.judged_by
                whole.merge(tally)
        return {
            "principles": [tally.as_dict() for tally in self.tallies],
            "judge": whole.as_dict() if whole.due else None,
            "weaknesses": weaknesses(whole),
        }


def together(judges: Iterable[Mapping[str, Any]]) -> Tally:
    """Return what `as_dict` told of the judge in several phases, added up as far as `weaknesses` needs it."""
    whole = Tally("all", "")
    for told in judges:
        agreed, first = told["consistency"], told["picked_first"]
        part = Tally("all", told["judged_by"], judgments=told["judgments"], unusable=Counter(told["unusable"]))
        if agreed:
            part.agreed, part.both_orders = agreed["hits"], agreed["n"]
        if first:
            part.picked_first, part.named = first["hits"], first["n"]
        whole.merge(part)
    return whole


def weaknesses(tally: Tally) -> list[str]:
    """Return a sentence for everything that makes a judge's verdicts hard to believe; empty where nothing does."""
    return [*_of_orders(tally), *_of_replies(tally)]


def _of_orders(tally: Tally) -> Iterable[str]:
    told = []
    if tally.named >= LEAST_VERDICTS:
        first = tally.picked_first / tally.named
        letter, share = ("A", first) if first > 0.5 else ("B", 1 - first)
        if share > MOST_ONE_LETTER:
            told.append(f"picked answer {letter}, whichever it was, in {share:.0%} of its {tally.named:,} verdicts")
    if tally.both_orders >= LEAST_VERDICTS and (tally.consistency or 0.0) < LEAST_CONSISTENCY:
        agreed = f"{tally.consistency or 0.0:.0%} of {tally.both_orders:,} questions"
        told.append(f"agreed with itself on {agreed} asked in both orders")
    if told:
        yield f"the judge {' and '.join(told)}; the labels it contradicts itself on are abstentions, not votes"


def _of_replies(tally: Tally) -> Iterable[str]:
    n = sum(tally.unusable.values())
    if tally.judgments >= LEAST_VERDICTS and n / tally.judgments > MOST_UNUSABLE:
        reason, _ = tally.unusable.most_common(1)[0]
        share = n / tally.judgments
        yield f"{share:.0%} of the judge's {tally.judgments:,} replies could not be used, mostly '{reason}'"


def reliability(run: RunView, phase: str, *, side: str = "train") -> dict[str, Any]:
    """Return how far the judge can be believed in one phase; the evaluation's is on side `held_out`."""
    counted = JudgeCount(run.questions)
    for end in run.ended(phase, side=side):
        counted.add(end)
    return counted.as_dict()
