"""respond: the policy answers a prompt, several times if asked."""

from __future__ import annotations

import asyncio

from cai import canon
from cai.engine.model import Generate, Sampling
from cai.records import Prompt, Response
from cai.store.calls import Recorded
from cai.templates import Turn


def opening(prompt: Prompt, system: str | None, shots: tuple[Turn, ...] = ()) -> tuple[Turn, ...]:
    """Return the turns the policy answers: the conversation, behind worked examples and a system message if any."""
    turns = (*shots, *(Turn(m.role, m.content) for m in prompt.messages))
    return (Turn("system", system), *turns) if system else turns


async def respond(
    prompt: Prompt, policy: Recorded, *, phase: str, samples: int, sampling: Sampling, system: str | None, seed: int
) -> list[Response]:
    """Return `samples` answers to `prompt`. Each sample's seed is drawn by hash, so the same run draws the same."""
    turns = opening(prompt, system)
    requests = [Generate(turns, sampling, canon.seed_of(seed, "respond", prompt.id, i), i) for i in range(samples)]
    answers = await asyncio.gather(*(policy.generate(request) for request in requests))
    return [
        Response(
            phase=phase,
            prompt_id=prompt.id,
            sample_index=i,
            call_key=answer.key,
            text=answer.reply.text or "",
            finish_reason=answer.reply.finish_reason or "unknown",
            n_tokens=answer.reply.n_completion,
        )
        for i, answer in enumerate(answers)
    ]
