"""How many requests one server is sent at a time, and who goes first."""

from __future__ import annotations

import asyncio
import heapq
from collections import deque


class Level:
    """How many requests may be in flight: additive increase, multiplicative decrease (Chiu and Jain 1989).

    Until the first push back it doubles with every round of answers, as TCP's slow start does. A request that must be
    sent again gives its place up meanwhile and goes before all that have not been sent yet. To these its place stays
    taken: a server that is full is not to be sent others instead.
    """

    def __init__(self, most: int, start: int = 64) -> None:
        self.most = most
        self.limit = float(min(start, most))
        self.in_flight = 0
        """Places taken, those of requests that wait to be sent again included."""
        self._n_waiting_again = 0
        self._n_sent = 0
        self._n_sent_at_decrease = 0
        self._pushed_back = False
        self._again: list[tuple[int, asyncio.Future[int]]] = []
        self._following: deque[asyncio.Future[int]] = deque()
        self._beginning: deque[asyncio.Future[int]] = deque()
        self._opening: asyncio.TimerHandle | None = None

    @property
    def is_held(self) -> bool:
        """Whether nothing may be sent for now."""
        return self._opening is not None

    @property
    def waiting(self) -> int:
        """How many that have not been sent yet wait for a place."""
        return len(self._following) + len(self._beginning)

    async def acquire(self, *, follows: bool = False) -> int:
        """Wait for a place, first come, first served; those that follow go before those that begin.

        The number that it returns counts what is sent, and names this sending to `shrink` and `again`.
        """
        future = asyncio.get_running_loop().create_future()
        (self._following if follows else self._beginning).append(future)
        self._wake()
        try:
            return await future
        except asyncio.CancelledError:
            if _was_let_in(future):
                self.release()
            raise

    async def again(self, number: int, pause_s: float = 0.0) -> int:
        """Let others be sent for `pause_s`, then wait to be sent again; return the new number.

        Of those that wait so, who was sent first goes first. Where it is cancelled, the place is still to be released.
        """
        future = asyncio.get_running_loop().create_future()
        self._n_waiting_again += 1
        self._wake()
        try:
            await asyncio.sleep(pause_s)
            heapq.heappush(self._again, (number, future))
            self._wake()
            return await future
        except asyncio.CancelledError:
            if not _was_let_in(future):
                self._n_waiting_again -= 1
            raise

    def release(self) -> None:
        """Give a place back and wake whoever fits."""
        self.in_flight -= 1
        self._wake()

    def grow(self) -> None:
        """Note an answer."""
        step = 1.0 if not self._pushed_back else 1.0 / self.limit
        self.limit = min(self.limit + step, float(self.most))
        self._wake()

    def shrink(self, number: int) -> None:
        """Note that the request of this number was pushed back.

        What was sent before the last decrease tells of the same overload and does not count again, as in TCP's
        recovery (RFC 6582).
        """
        self._pushed_back = True
        if number > self._n_sent_at_decrease:
            self.limit = max(1.0, self.limit / 2)
            self._n_sent_at_decrease = self._n_sent

    def hold(self, seconds: float) -> None:
        """Send nothing for so long, whoever waits: the server has named the time."""
        loop = asyncio.get_running_loop()
        opens = loop.time() + seconds
        if self._opening is None or self._opening.when() < opens:
            if self._opening is not None:
                self._opening.cancel()
            self._opening = loop.call_at(opens, self._open)

    def _open(self) -> None:
        self._opening = None
        self._wake()

    def _wake(self) -> None:
        if self.is_held:
            return
        while self._again and self.in_flight - self._n_waiting_again < int(self.limit):
            _, future = heapq.heappop(self._again)
            if not future.done():
                self._n_waiting_again -= 1
                self._let_in(future)
        while (waiting := self._following or self._beginning) and self.in_flight < int(self.limit):
            future = waiting.popleft()
            if not future.done():
                self.in_flight += 1
                self._let_in(future)

    def _let_in(self, future: asyncio.Future[int]) -> None:
        self._n_sent += 1
        future.set_result(self._n_sent)


def _was_let_in(future: asyncio.Future[int]) -> bool:
    return future.done() and not future.cancelled()
