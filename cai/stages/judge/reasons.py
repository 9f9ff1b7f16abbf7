"""Mode `cot`: reasons first, then the letters in the same conversation, so that no verdict is read from running text.

With several samples (self-consistency) the clamped probabilities are averaged, as Bai et al. 2022, §4.1, average five.
Reasoning that was cut at its token limit is no reasoning: that sample is invalid.

Prior correction is that of `letters.py`; on the pairs without content the judge gives its reasons too.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence

from cai import canon
from cai.config import JudgeSection
from cai.constitution import Principle
from cai.engine.model import Generate, Sampling, ScoreGroup
from cai.records import Order
from cai.stages.judge.bench import OPTIONS, Bench, Case, Seat
from cai.stages.judge.letters import CONTENT_FREE, content_free, leaning
from cai.stages.judge.readings import Reading, as_part, mean_of, read_letters
from cai.store.calls import Answer
from cai.templates import Turn

_UNFINISHED = {
    "length": "reasoning_cut",
    "abort": "reasoning_cut",
    "error": "reasoning_cut",
    "content_filter": "refused",
}
"""Why reasoning ended, where it did not end by itself, and what the judgment then is."""


async def readings(
    case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench
) -> list[Reading]:
    """Return one reading per principle."""
    head = bench.pair_turns(case, order)
    return list(await asyncio.gather(*(_averaged(case, order, p, head, seat, bench) for p in principles)))


async def _averaged(
    case: Case, order: Order, principle: Principle, head: tuple[Turn, ...], seat: Seat, bench: Bench
) -> Reading:
    n, prior = bench.settings.cot.samples, await prior_of(principle, seat, bench)
    asked = await asyncio.gather(*(_sample(i, case, order, principle, head, seat, bench) for i in range(n)))
    samples = [read_sample(answer, order, bench.settings, prior) for answer in asked]
    if n == 1:
        return samples[0]
    return dataclasses.replace(mean_of([as_part(f"sample {i}", s) for i, s in enumerate(samples, 1)]), prior=prior)


async def prior_of(principle: Principle, seat: Seat, bench: Bench) -> float | None:
    """Return the judge's leaning to the first letter after reasons (nats); None where none is taken off."""
    if bench.settings.prior == "off":
        return None
    key = ("cot", seat.identity, principle.compare)
    if key not in bench.learnt:
        cases = [content_free(text) for text in CONTENT_FREE]
        asked = (_sample(0, c, "ab", principle, bench.pair_turns(c, "ab"), seat, bench) for c in cases)
        bench.learnt[key] = leaning(await asyncio.gather(*asked), bench)
    return bench.learnt[key]


async def _sample(
    index: int, case: Case, order: Order, principle: Principle, head: tuple[Turn, ...], seat: Seat, bench: Bench
) -> Answer:
    """Return what the judge answers after its reasons; the reasons themselves where they did not end."""
    assert seat.model is not None
    cot, template = bench.settings.cot, bench.templates["reasoning"]
    asked = (*head, *template.turns(only=("user_principle",), principle=principle.compare))
    sampling = Sampling(max_tokens=cot.max_tokens, temperature=cot.temperature)
    drawn = canon.seed_of(bench.seed, "reason", case.comparison.id, principle.id, order, *([index] if index else []))
    reasons = await seat.model.generate(Generate(asked, sampling, drawn, index))
    if why_unfinished(reasons) is not None:
        return reasons
    tail = (
        Turn("assistant", (reasons.reply.text or "").strip()),
        *template.turns(only=("user_verdict", "assistant_verdict"), principle=principle.compare),
    )
    return (await seat.model.score(ScoreGroup(asked, (tail,), OPTIONS)))[0]


def read_sample(answer: Answer, order: Order, settings: JudgeSection, prior: float | None) -> Reading:
    """Return what one sample says; invalid where its reasons did not end."""
    unfinished = why_unfinished(answer) if answer.reply.logprobs is None else None
    return unfinished or read_letters(answer, order, settings, prior=prior, clamp=settings.cot.clamp)


def why_unfinished(reasons: Answer) -> Reading | None:
    """Return the invalid reading of reasoning that did not end by itself, or None."""
    cut = _UNFINISHED.get(reasons.reply.finish_reason or "")
    return None if cut is None else Reading(None, cut, reasons.key, reasons.reply_id)
