"""settle: from one comparison's decisions to its effective label. A pure function.

Per principle the probability is the mean of both orders; a principle whose orders name different winners abstains
(or is averaged, as the config says). The label is the weighted mean over the principles that did not abstain.
Confidence is |2p − 1| times the weight share that did not abstain. This is the only place where a person beats the
judge: the latest override that was not withdrawn holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from cai.records import Decision, Judgment, Label, LabelSource, Order, Override, State, Withdrawal

_OPPOSED = frozenset({"a", "b"})
_NAMING = _OPPOSED | {"tie"}
Stand = Literal["votes", "abstains", "refused", "invalid", "not_applicable", "missing"]


@dataclass(frozen=True, slots=True)
class Asked:
    """A question that was due on a comparison."""

    principle_id: str
    weight: float
    orders: tuple[Order, ...]
    """Both for a judge, one for a check."""


class Vote(NamedTuple):
    """What one principle says about one comparison."""

    principle_id: str
    weight: float
    stand: Stand
    """Whether it votes, and if not, why not."""
    p_a: float | None
    """Mean over the orders; None where it has no usable opinion. Kept for a principle that abstains."""
    is_tie: bool
    """Whether it votes for a tie."""
    judgment_ids: tuple[str, ...]
    """The decisions it rests on."""


@dataclass(frozen=True, slots=True)
class Settled:
    """Where a comparison ends before filters look at its texts."""

    comparison_id: str
    state: State
    label: Label | None
    """The better arm, or `tie`; None where nothing could be decided."""
    p_a: float | None
    p_tie: float
    confidence: float
    votes: tuple[Vote, ...]
    label_source: LabelSource
    override_id: str | None

    @property
    def judgment_ids(self) -> frozenset[str]:
        """The judgments that any vote rests on; the others were made under another text, judge or setting."""
        return frozenset(id_ for vote in self.votes for id_ in vote.judgment_ids)


def settle(
    comparison_id: str,
    decisions: Sequence[Decision],
    due: Mapping[str, Asked],
    *,
    on_disagreement: Literal["abstain", "average"] = "abstain",
    tie_margin: float = 0.01,
) -> Settled:
    """Return the effective label of one comparison.

    `due` maps the id of every question due to its weight and orders; decisions on other questions (of an earlier
    constitution, say) are passed over. A question that is due and was not decided makes the comparison `failed`.
    """
    judged: dict[str, dict[Order, Judgment]] = {}
    for d in decisions:
        if isinstance(d, Judgment):
            judged.setdefault(d.question_id, {})[d.order] = d
    votes = tuple(_vote(asked, judged.get(id_, {}), on_disagreement, tie_margin) for id_, asked in due.items())
    override = effective_override(decisions)
    p_a, p_tie, confidence = _mean(votes)
    state = _state(votes, p_a, tie_margin)
    if override is not None and state != "failed":
        return _by_person(comparison_id, override, votes)
    label = _label(p_a, tie_margin)
    return Settled(comparison_id, state, label, p_a, p_tie, confidence, votes, "judge", None)


def effective_override(decisions: Sequence[Decision]) -> Override | None:
    """Return the override that holds, the latest that was not taken back; None where nobody overrode the judge."""
    withdrawn = {d.withdraws for d in decisions if isinstance(d, Withdrawal)}
    overrides = [d for d in decisions if isinstance(d, Override) and d.id not in withdrawn]
    return overrides[-1] if overrides else None


def _by_person(comparison_id: str, override: Override, votes: tuple[Vote, ...]) -> Settled:
    p_a = {"a": 1.0, "b": 0.0, "tie": 0.5}[override.label]
    tie = 1.0 if override.label == "tie" else 0.0
    source: LabelSource = "adjudicated" if override.settles else "human"
    return Settled(comparison_id, "overridden", override.label, p_a, tie, abs(2 * p_a - 1), votes, source, override.id)


def _vote(asked: Asked, by_order: Mapping[Order, Judgment], on_disagreement: str, margin: float) -> Vote:
    found = [by_order[order] for order in asked.orders if order in by_order]
    ids = tuple(d.id for d in found)
    said = [d.p_a for d in found if d.p_a is not None]
    p_a = sum(said) / len(said) if said and len(said) == len(found) else None
    stand = _stand(found, len(asked.orders), on_disagreement)
    is_tie = stand == "votes" and p_a is not None and abs(p_a - 0.5) <= margin
    return Vote(asked.principle_id, asked.weight, stand, p_a, is_tie, ids)


def _stand(found: Sequence[Judgment], n_due: int, on_disagreement: str) -> Stand:
    if len(found) < n_due:
        return "missing"
    verdicts = {d.verdict for d in found}
    if verdicts <= _NAMING:
        return "abstains" if on_disagreement == "abstain" and verdicts >= _OPPOSED else "votes"
    for bad in ("refused", "invalid", "not_applicable"):
        if bad in verdicts:
            return bad  # type: ignore[return-value]
    return "votes"


def _mean(votes: Sequence[Vote]) -> tuple[float | None, float, float]:
    """Return (p_a, p_tie, confidence) of the principles that vote."""
    voting = [v for v in votes if v.stand == "votes"]
    weight = sum(v.weight for v in voting)
    asked = sum(v.weight for v in votes if v.stand != "not_applicable")
    if not voting:
        return None, 0.0, 0.0
    p_a = min(1.0, max(0.0, sum(v.weight * (v.p_a or 0.0) for v in voting) / weight))
    p_tie = min(1.0, sum(v.weight for v in voting if v.is_tie) / weight)
    return p_a, p_tie, min(1.0, abs(2 * p_a - 1) * weight / asked)


def _state(votes: Sequence[Vote], p_a: float | None, margin: float) -> State:
    stands = {v.stand for v in votes}
    if "missing" in stands or not votes:
        return "failed"
    if p_a is None:
        return "refused" if "refused" in stands else "invalid" if "invalid" in stands else "abstained"
    return "tied" if abs(p_a - 0.5) <= margin else "kept"


def _label(p_a: float | None, margin: float) -> Label | None:
    if p_a is None:
        return None
    if abs(p_a - 0.5) <= margin:
        return "tie"
    return "a" if p_a > 0.5 else "b"
