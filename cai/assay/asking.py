"""Putting pairs before a judge as a run does, and what it said of each, both orders side by side."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from cai.assay.labelled import Labelled
from cai.constitution import Principle
from cai.errors import RejectedError
from cai.records import Judgment, Label, Order
from cai.stages.judge import Bench, judge
from cai.stages.settle import Asked, Settled, settle
from cai.store.calls import Recorded

Item = TypeVar("Item")
Found = TypeVar("Found")

OVERALL = Principle(
    id="overall",
    title="Better overall",
    compare="Which of the two answers, A or B, does better what the person asked for, correctly and without harm?",
)
"""The one question of `cai judge bench`, unless a constitution is asked for."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a judge said about one pair."""

    judgments: tuple[Judgment, ...]
    settled: Settled
    """Under abstention where the orders disagree."""

    @property
    def winner(self) -> Label | None:
        """The label it stands by; None where its orders disagree or a reply could not be read."""
        return self.settled.label if self.settled.state in ("kept", "tied") else None

    @property
    def p_a(self) -> float | None:
        """Mean probability of arm a over the usable judgments of all orders and principles, disagreement averaged."""
        usable = [j.p_a for j in self.judgments if j.p_a is not None]
        return sum(usable) / len(usable) if usable and len(usable) == len(self.judgments) else None

    def p_in(self, order: Order) -> float | None:
        """Return the mean probability of arm a in one order; None where a judgment in it could not be read."""
        found = [j.p_a for j in self.judgments if j.order == order]
        return sum(found) / len(found) if found and all(p is not None for p in found) else None  # type: ignore[arg-type]

    @property
    def is_unusable(self) -> bool:
        """Whether a reply could not be read."""
        return any(not j.usable for j in self.judgments)

    @property
    def priors(self) -> tuple[float, ...]:
        """The leanings to a letter that were taken off (nats), those of a panel's members included."""
        read = [reading for j in self.judgments for reading in (j, *j.parts)]
        return tuple(reading.prior for reading in read if reading.prior is not None)

    @property
    def flag(self) -> str | None:
        """What looked like an attempt to steer the judge."""
        return next((j.flag for j in self.judgments if j.flag), None)


def letter(p_a: float | None, order: Order) -> Literal["A", "B"] | None:
    """Return the letter that a probability of arm a names in an order; None for one half and for none."""
    if p_a is None or p_a == 0.5:
        return None
    return "A" if (p_a > 0.5) == (order == "ab") else "B"


async def ask(pair: Labelled, bench: Bench, model: Recorded) -> Said:
    """Return what the judge says about a pair under every principle of the bench."""
    comparison = pair.comparison
    try:
        judgments = await judge(comparison, pair.prompt, pair.text_a, pair.text_b, model, bench)
    except RejectedError as error:
        judgments = _rejected(pair, bench, str(error))
    due = {
        bench.question(p).id: Asked(p.id, p.weight, bench.orders(p))
        for p in bench.chosen(comparison, pair.prompt.domain)
    }
    settled = settle(comparison.id, judgments, due, tie_margin=bench.settings.tie_margin)
    return Said(tuple(judgments), settled)


def _rejected(pair: Labelled, bench: Bench, why: str) -> list[Judgment]:
    """Return an invalid judgment for each that was due: a pair the server will not take is counted, not lost."""
    return [
        Judgment(
            comparison_id=pair.comparison.id, question_id=bench.question(p).id, order=order, call_key=None,
            reply_id=None, verdict="invalid", p_a=None, reason="rejected",
        )
        for p in bench.chosen(pair.comparison, pair.prompt.domain)
        for order in bench.orders(p)
    ]  # fmt: skip


async def ask_all(
    items: Sequence[Item], one: Callable[[Item], Awaitable[Found]], *, in_flight: int, tell: Callable[[], None]
) -> list[Found]:
    """Return `one(item)` of every item in their order, at most `in_flight` at once; `tell` hears of each that is done.

    The first exception cancels the rest and is raised.
    """
    gate = asyncio.Semaphore(in_flight)

    async def gated(item: Item) -> Found:
        async with gate:
            found = await one(item)
        tell()
        return found

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(gated(item)) for item in items]
    except* Exception as several:
        raise _first(several) from None
    return [task.result() for task in tasks]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def under(bench: Bench, principles: Iterable[Principle]) -> Bench:
    """Return the bench with other principles; what was learnt of the judge stays learnt."""
    return dataclasses.replace(bench, principles=tuple(principles))
