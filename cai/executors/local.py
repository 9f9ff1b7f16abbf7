"""Bounded work in flight on this machine: every prompt walks at its own pace, none waits for the others."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any, TypeVar

import uvloop

T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work` to its end and return what it returns, on libuv's event loop: asyncio's own costs a walk more."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def for_each(items: Iterable[T], work: Callable[[T], Awaitable[None]], *, in_flight: int) -> None:
    """Run `work` on every item, at most `in_flight` at once, drawing items only as places free up.

    The first exception stops the drawing, cancels what is in flight and is raised.
    """
    source = iter(items)

    async def worker() -> None:
        for item in source:
            await work(item)

    await together(*(worker() for _ in range(in_flight)))


async def together(*works: Coroutine[Any, Any, T]) -> list[T]:
    """Run `works` side by side and return their results; the first exception cancels the others and is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(work) for work in works]
    except* Exception as several:
        raise _first(several) from None
    return [task.result() for task in tasks]


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first
