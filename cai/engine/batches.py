"""Gathers single requests into batches: whoever asks while a batch is at work waits for the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(slots=True)
class _Waiting(Generic[Item, Result]):
    key: Hashable
    width: int
    item: Item
    future: asyncio.Future[Result]


class Batches(Generic[Item, Result]):
    """Items with equal keys go through `work(key, items)` together, in the order in which they came.

    A batch is as wide as its widest item, so its cost is that width times its length; `max_cost` bounds it, save that
    one item alone may exceed it. `work` runs in `executor` and returns one result per item; what it raises reaches
    everyone in the batch.
    """

    def __init__(
        self,
        work: Callable[[Hashable, Sequence[Item]], Sequence[Result]],
        executor: Executor,
        *,
        max_items: int,
        max_cost: int,
    ) -> None:
        self._work, self._executor = work, executor
        self._max_items, self._max_cost = max_items, max_cost
        self._waiting: list[_Waiting[Item, Result]] = []
        self._task: asyncio.Task[None] | None = None

    async def ask(self, key: Hashable, width: int, item: Item) -> Result:
        """Return what `work` makes of `item`."""
        loop = asyncio.get_running_loop()
        waiting: _Waiting[Item, Result] = _Waiting(key, width, item, loop.create_future())
        self._waiting.append(waiting)
        if self._task is None or self._task.done():
            self._task = loop.create_task(self._drain())
        return await waiting.future

    async def _drain(self) -> None:
        loop = asyncio.get_running_loop()
        while batch := self._take():
            items = [waiting.item for waiting in batch]
            try:
                results = await loop.run_in_executor(self._executor, self._work, batch[0].key, items)
            except Exception as error:
                _settle(batch, error)
            else:
                for waiting, result in zip(batch, results, strict=True):
                    if not waiting.future.done():
                        waiting.future.set_result(result)

    def _take(self) -> list[_Waiting[Item, Result]]:
        """Return the next batch, the longest waiting item first; nobody waits for a request that was given up."""
        self._waiting = [waiting for waiting in self._waiting if not waiting.future.done()]
        batch: list[_Waiting[Item, Result]] = []
        width = 0
        for waiting in self._waiting:
            if not batch or waiting.key == batch[0].key:
                width = max(width, waiting.width)
                if batch and (len(batch) == self._max_items or width * (len(batch) + 1) > self._max_cost):
                    break
                batch.append(waiting)
        taken = {id(waiting) for waiting in batch}
        self._waiting = [waiting for waiting in self._waiting if id(waiting) not in taken]
        return batch


def _settle(batch: Sequence[_Waiting[Item, Result]], error: Exception) -> None:
    for waiting in batch:
        if not waiting.future.done():
            waiting.future.set_exception(error)
