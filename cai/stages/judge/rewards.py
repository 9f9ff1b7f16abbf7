"""Mode `reward_model`: two rewards, and the probability that Bradley and Terry give their difference.

A reward model knows no principles: it gives every principle the same vote, and is asked once per answer.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence

from cai.constitution import Principle
from cai.engine.model import Reward
from cai.records import Order, Part
from cai.stages.judge.bench import Bench, Case, Seat
from cai.stages.judge.readings import Reading, combined, commonest, sigmoid
from cai.store.calls import Answer
from cai.templates import Turn


async def readings(
    case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench
) -> list[Reading]:
    """Return the same reading for every principle; `order` plays no part."""
    assert seat.model is not None
    turns = tuple(Turn(m.role, m.content) for m in case.prompt.messages)
    answers = await asyncio.gather(*(seat.model.reward(Reward(turns, text)) for text in (case.text_a, case.text_b)))
    return [by_rewards(*answers)] * len(principles)


def by_rewards(answer_a: Answer, answer_b: Answer) -> Reading:
    """Return the preference between two answers with rewards."""
    parts = []
    for name, answer in (("a", answer_a), ("b", answer_b)):
        reward, reason = answer.reply.reward, answer.reply.error
        if reason is None and (reward is None or not math.isfinite(reward)):
            reward, reason = None, "no_reward"
        parts.append(Part(name=name, call_key=answer.key, reply_id=answer.reply_id, value=reward, reason=reason))
    return preferred(parts)


def preferred(parts: Sequence[Part]) -> Reading:
    """Return the reading that the rewards of arm a and arm b make."""
    if any(part.value is None for part in parts):
        return combined(parts, None, commonest(part.reason for part in parts))
    return combined(parts, sigmoid((parts[0].value or 0.0) - (parts[1].value or 0.0)))
