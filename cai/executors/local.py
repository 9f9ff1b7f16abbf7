"""Bounded work in flight on this machine: every prompt walks at its own pace, none waits for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, in_flight: int) -> None:
    """Run `work` on every item, at most `in_flight` at once, drawing items only as places free up.

    The first exception stops the drawing, cancels what is in flight and is raised.
    """
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(in_flight):
                group.create_task(worker())
    except* Exception as several:
        raise _first(several) from None


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
