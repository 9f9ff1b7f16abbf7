"""From replies to a verdict. A reply that cannot be read is invalid, never a tie, a zero or a coin flip.

Here a probability is mapped back from the letter to the source arm, and nowhere else.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cai.config import JudgeSection
from cai.engine.model import Reply
from cai.records import Comparison, Judgment, Order, Part, Question, Verdict
from cai.stages.judge.bench import OPTIONS
from cai.store.calls import Answer

_SLACK = 0.01
"""How far above 1 rounding may bring the sum of probabilities."""
MAX_LOGIT = 700.0
"""Beyond this many nats an exponential leaves the range of floats."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What one judge says on one principle in one order, before it becomes a judgment."""

    p_a: float | None
    """Probability that arm a is better; None where it could not be read."""
    reason: str | None = None
    """Why it could not be read."""
    call_key: str | None = None
    reply_id: str | None = None
    parts: tuple[Part, ...] = ()
    prior: float | None = None

    def judgment(
        self, comparison: Comparison, question: Question, order: Order, tie_margin: float, flag: str | None = None
    ) -> Judgment:
        """Return the decision that this reading amounts to."""
        return Judgment(
            comparison_id=comparison.id,
            question_id=question.id,
            order=order,
            call_key=self.call_key,
            reply_id=self.reply_id,
            verdict=self._verdict(tie_margin),
            p_a=self.p_a,
            reason=self.reason,
            flag=flag,
            prior=self.prior,
            parts=self.parts,
        )

    def _verdict(self, tie_margin: float) -> Verdict:
        if self.p_a is None:
            return "refused" if self.reason == "refused" else "invalid"
        return winner(self.p_a, tie_margin)


def winner(p_a: float, tie_margin: float) -> Verdict:
    """Return the arm with more than one half, or a tie within the margin."""
    if abs(p_a - 0.5) <= tie_margin:
        return "tie"
    return "a" if p_a > 0.5 else "b"


def sigmoid(x: float) -> float:
    """Return 1 / (1 + exp(-x)), written so that it cannot overflow."""
    return 1 / (1 + math.exp(min(-x, MAX_LOGIT)))


def why_invalid(reply: Reply, options: Sequence[str], max_outside: float) -> str | None:
    """Return why a reply's probabilities cannot be used, or None."""
    if reply.error:
        return reply.error
    if not reply.logprobs or set(reply.logprobs) != set(options):
        return "no_probabilities"
    if not all(math.isfinite(v) for v in reply.logprobs.values()):
        return "not_finite"
    total = math.fsum(math.exp(min(v, 1.0)) for v in reply.logprobs.values())
    if total > 1 + _SLACK:
        return "not_probabilities"
    if not total or reply.outside is not None and not reply.outside <= max_outside:
        return "outside_options"
    return None


def logit_of(reply: Reply, options: Sequence[str] = OPTIONS) -> float:
    """Return the log-odds (nats) of the first of two options against the second, of a reply that can be used."""
    logprobs = reply.logprobs or {}
    return max(-MAX_LOGIT, min(MAX_LOGIT, logprobs[options[0]] - logprobs[options[1]]))


def read_letters(
    answer: Answer,
    order: Order,
    settings: JudgeSection,
    *,
    prior: float | None = None,
    clamp: tuple[float, float] | None = None,
) -> Reading:
    """Return what the letters say, mapped back to the arms. `prior` (nats) is taken off, `clamp` applied after it."""
    reason = why_invalid(answer.reply, OPTIONS, settings.max_outside_mass)
    if reason is not None:
        return Reading(None, reason, answer.key, answer.reply_id)
    p_first = sigmoid(logit_of(answer.reply) - (prior or 0.0))
    if clamp is not None:
        p_first = min(max(p_first, clamp[0]), clamp[1])
    p_a = p_first if order == "ab" else 1 - p_first
    return Reading(p_a, None, answer.key, answer.reply_id, prior=prior)


def as_part(name: str, reading: Reading) -> Part:
    """Return a reading as a part of another."""
    return Part(
        name=name,
        call_key=reading.call_key,
        reply_id=reading.reply_id,
        value=reading.p_a,
        reason=reading.reason,
        prior=reading.prior,
    )


def combined(parts: Sequence[Part], p_a: float | None, reason: str | None = None) -> Reading:
    """Return the reading that several parts make; it names the first part's call."""
    first = next((part for part in parts if part.call_key is not None), None)
    return Reading(p_a, reason, first and first.call_key, first and first.reply_id, tuple(parts))


def mean_of(parts: Sequence[Part]) -> Reading:
    """Return the mean of the parts that could be read; invalid where fewer than half of them could."""
    values = [part.value for part in parts if part.value is not None]
    if 2 * len(values) < len(parts) or not values:
        return combined(parts, None, commonest(part.reason for part in parts))
    return combined(parts, math.fsum(values) / len(values))


def commonest(reasons: Iterable[str | None]) -> str:
    """Return the reason that stands most often; of equally frequent ones the first."""
    counted = Counter(reason for reason in reasons if reason)
    return counted.most_common(1)[0][0] if counted else "unreadable"
