"""critique: one principle finds what is wrong in an answer.

The principle of each round is drawn by a hash of (seed, prompt, round, principle), so that adding a principle changes
few draws (Bai et al. 2022, §3.1 draws one at random at every revision step). A principle with a programmatic check is
criticised by code, which says what failed and where; any other by the judge, inside the conversation itself.
"""

from __future__ import annotations

from collections.abc import Sequence

from cai import canon, checks
from cai.constitution import Principle
from cai.engine.model import Generate, Sampling
from cai.records import Critique, Prompt, Response, Revision
from cai.store.calls import Recorded
from cai.templates import Template, Turn


def draw(
    principles: Sequence[Principle], prompt: Prompt, *, sample_index: int, round: int, seed: int
) -> Principle | None:
    """Return the principle drawn for this round, or None where none that applies can be revised by.

    The weights take part: a principle of weight 2 is drawn twice as often as one of weight 1 (exponential race).
    """
    able = [p for p in principles if p.revision and p.applies_to(prompt.domain)]
    if not able:
        return None
    return max(
        able, key=lambda p: canon.unit_interval(seed, "draw", prompt.id, sample_index, round, p.id) ** (1 / p.weight)
    )


def request_turn(principle: Principle, template: Template) -> Turn:
    """Return the user turn that asks for a critique."""
    request = principle.critique or f"Say what is wrong with the last answer in this respect: {principle.title}."
    return template.turns(request=request)[0]


async def critique(
    answer: Response | Revision,
    principle: Principle,
    conversation: tuple[Turn, ...],
    judge: Recorded,
    *,
    round: int,
    template: Template,
    sampling: Sampling,
    seed: int,
) -> Critique:
    """Return what `principle` finds in `answer`, the last turn of `conversation`."""
    if principle.check is not None:
        result = checks.run(principle.check, answer.text)
        return Critique(
            answer_id=answer.id,
            principle_id=principle.id,
            round=round,
            text_id=principle.id_of("check"),
            call_key=None,
            text=result.sentence(),
            passed=result.passed,
        )
    turns = (*conversation, request_turn(principle, template))
    drawn = canon.seed_of(seed, "critique", answer.id, round)
    written = await judge.generate(Generate(turns, sampling, drawn))
    return Critique(
        answer_id=answer.id,
        principle_id=principle.id,
        round=round,
        text_id=principle.id_of("critique"),
        call_key=written.key,
        text=written.reply.text or "",
        passed=None,
    )
