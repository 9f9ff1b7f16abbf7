"""One comparison's decisions: checks by code, everything else by the judges that sit."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from cai import checks
from cai.constitution import Principle
from cai.records import Comparison, Judgment, Order, Prompt, Question
from cai.stages.judge import grades, letters, reasons, rewards
from cai.stages.judge.bench import ORDERS, Bench, Case, Seat
from cai.stages.judge.canaries import flag_of
from cai.stages.judge.panel import together
from cai.stages.judge.readings import Reading
from cai.store.calls import Recorded

Mode = Callable[[Case, Order, Sequence[Principle], Seat, Bench], Awaitable[list[Reading]]]

_MODES: dict[str, Mode] = {
    "logprob": letters.readings,
    "cot": reasons.readings,
    "score": grades.scores,
    "rubric": grades.rubrics,
    "reward_model": rewards.readings,
}


async def judge(
    comparison: Comparison, prompt: Prompt, text_a: str, text_b: str, judge: Recorded, bench: Bench
) -> list[Judgment]:
    """Return the decisions on one comparison: checks first, then each order's principles."""
    case = Case(comparison, prompt, text_a, text_b)
    principles = bench.chosen(comparison, prompt.domain)
    decided = [by_check(case, p, bench.question(p)) for p in principles if p.check is not None]
    asked = {order: [p for p in principles if p.check is None and order in bench.orders(p)] for order in ORDERS}
    if not any(asked.values()):
        return decided
    seats = bench.seated(judge)
    flag, *said = await asyncio.gather(
        flag_of(case, bench, judge), *(_said(case, order, asked[order], seats, bench) for order in ORDERS)
    )
    for order, readings in zip(ORDERS, said, strict=True):
        for principle, reading in zip(asked[order], readings, strict=True):
            question = bench.question(principle)
            decided.append(reading.judgment(comparison, question, order, bench.settings.tie_margin, flag))
    return decided


def by_check(case: Case, principle: Principle, question: Question) -> Judgment:
    """Return what a principle's check decides."""
    p_a = checks.compare(principle.check, case.text_a, case.text_b)
    return Reading(p_a).judgment(case.comparison, question, "ab", 0.0)


async def _said(
    case: Case, order: Order, principles: Sequence[Principle], seats: Sequence[Seat], bench: Bench
) -> list[Reading]:
    """Return one reading per principle in one order: the only judge's, or the panel's."""
    if not principles:
        return []
    each = await asyncio.gather(*(_of_seat(case, order, principles, seat, bench) for seat in seats))
    if bench.settings.mode != "panel":
        return each[0]
    return [together(seats, said, bench.settings) for said in zip(*each, strict=True)]


async def _of_seat(
    case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench
) -> list[Reading]:
    """Return one judge's readings, in the order of the principles; each mode is asked for its own at once."""
    by_mode: dict[str, list[Principle]] = {}
    for principle in principles:
        by_mode.setdefault(seat.mode_for(principle), []).append(principle)
    found = await asyncio.gather(*(_MODES[mode](case, order, own, seat, bench) for mode, own in by_mode.items()))
    of = {p.id: r for own, said in zip(by_mode.values(), found, strict=True) for p, r in zip(own, said, strict=True)}
    return [of[principle.id] for principle in principles]
