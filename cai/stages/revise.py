"""revise: the judge writes an answer again after a critique, in the same conversation."""

from __future__ import annotations

from cai import canon
from cai.constitution import Principle
from cai.engine.model import Generate, Sampling
from cai.records import Critique, Response, Revision
from cai.stages.critique import request_turn
from cai.store.calls import Recorded
from cai.templates import Templates, Turn


async def revise(
    answer: Response | Revision,
    found: Critique,
    principle: Principle,
    conversation: tuple[Turn, ...],
    judge: Recorded,
    *,
    templates: Templates,
    sampling: Sampling,
    seed: int,
) -> Revision:
    """Return `answer` (the last turn of `conversation`) written again in the light of `found`."""
    question = next(turn.text for turn in reversed(conversation) if turn.role == "user")
    turns = (
        *conversation,
        request_turn(principle, templates["critique"]),
        Turn("assistant", found.text),
        *templates["revision"].turns(request=principle.revision, question=question),
    )
    drawn = canon.seed_of(seed, "revise", found.id)
    written = await judge.generate(Generate(turns, sampling, drawn))
    return Revision(
        critique_id=found.id,
        answer_id=answer.id,
        text_id=principle.id_of("revision"),
        call_key=written.key,
        text=(written.reply.text or "").strip(),
        finish_reason=written.reply.finish_reason or "unknown",
        n_tokens=written.reply.n_completion,
    )
