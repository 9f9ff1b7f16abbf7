"""Mode `logprob`: the probability of the letters A and B, all principles of a pair in one group.

Prior correction: on pairs that say nothing, a judge without a leaning gives both letters one half. What it gives
instead, as the mean log-odds over such pairs, is taken off its log-odds on real pairs, per principle (contextual
calibration of Zhao et al. 2021, written for two labels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cai.constitution import Principle
from cai.engine.model import ScoreGroup
from cai.records import Comparison, Message, Order, Prompt
from cai.stages.judge.bench import OPTIONS, Bench, Case, Seat
from cai.stages.judge.readings import Reading, logit_of, read_letters, why_invalid

CONTENT_FREE = ("N/A", "[MASK]", "...")
"""Texts that say nothing; each stands as the question and as both answers of one pair."""


async def readings(
    case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench
) -> list[Reading]:
    """Return one reading per principle."""
    assert seat.model is not None
    head = bench.pair_turns(case, order)
    priors = await priors_of(principles, seat, bench)
    # At a limit of 1 no mass outside the letters makes a judgment invalid: nobody needs to be told of it.
    mass = bench.settings.max_outside_mass < 1
    answers = await seat.model.score(ScoreGroup(head, tuple(bench.ask(p) for p in principles), OPTIONS, mass=mass))
    return [
        read_letters(answer, order, bench.settings, prior=prior) for answer, prior in zip(answers, priors, strict=True)
    ]


async def priors_of(principles: Sequence[Principle], seat: Seat, bench: Bench) -> list[float | None]:
    """Return the judge's leaning to the first letter under each principle (nats); None where none is taken off."""
    if bench.settings.prior == "off":
        return [None] * len(principles)
    missing = [p for p in principles if (seat.identity, p.compare) not in bench.learnt]
    if missing:
        for principle, prior in zip(missing, await _estimated(missing, seat, bench), strict=True):
            bench.learnt[seat.identity, principle.compare] = prior
    return [bench.learnt[seat.identity, p.compare] for p in principles]


async def _estimated(principles: Sequence[Principle], seat: Seat, bench: Bench) -> list[float | None]:
    assert seat.model is not None
    tails = tuple(bench.ask(p) for p in principles)
    heads = [bench.pair_turns(content_free(text), "ab") for text in CONTENT_FREE]
    said = [await seat.model.score(ScoreGroup(head, tails, OPTIONS)) for head in heads]
    return [leaning(answers, bench) for answers in zip(*said, strict=True)]


def leaning(answers: Sequence[Any], bench: Bench, options: Sequence[str] = OPTIONS) -> float | None:
    """Return the mean log-odds (nats) of the first option over answers on texts without content; None without any."""
    usable = [a.reply for a in answers if why_invalid(a.reply, options, bench.settings.max_outside_mass) is None]
    return math.fsum(logit_of(reply, options) for reply in usable) / len(usable) if usable else None


def content_free(text: str) -> Case:
    """Return a pair that says nothing: `text` asked, and `text` answered twice."""
    prompt = Prompt(messages=(Message(role="user", content=text),))
    comparison = Comparison(phase="content-free", prompt_id=prompt.id, a_id=text, b_id=text, source="samples")
    return Case(comparison, prompt, text, text)
