"""The level of concurrency: how it finds what a server bears, and who goes first."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from cai.engine.level import Level


async def turns(n: int = 10) -> None:
    """Let everybody go on who can."""
    for _ in range(n):
        await asyncio.sleep(0)


def test_push_back_halves_the_level_and_answers_raise_it() -> None:
    async def main() -> None:
        level = Level(64, start=32)
        level.shrink(await level.acquire())
        assert level.limit == 16
        for _ in range(16):
            level.grow()
        assert 16.9 < level.limit <= 17
        for _ in range(100_000):
            level.grow()
        assert level.limit == 64

    asyncio.run(main())


def test_what_was_sent_before_a_decrease_tells_of_the_same_overload() -> None:
    async def main() -> None:
        level = Level(64, start=64)
        numbers = [await level.acquire() for _ in range(40)]
        for number in numbers:
            level.shrink(number)
        assert level.limit == 32
        for _ in numbers:
            level.release()
        level.shrink(await level.acquire())
        assert level.limit == 16

    asyncio.run(main())


def test_no_more_requests_are_in_flight_than_the_level_allows() -> None:
    async def main() -> int:
        level, most, running = Level(5, start=5), 0, 0

        async def one() -> None:
            nonlocal most, running
            await level.acquire()
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1
            level.release()

        tasks = [asyncio.create_task(one()) for _ in range(100)]
        for task in tasks[::7]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert level.in_flight == 0
        return most

    assert asyncio.run(main()) == 5


def test_who_was_pushed_back_goes_first_in_order_then_who_follows_then_who_begins() -> None:
    async def main() -> list[str]:
        level, order = Level(4, start=4), []

        async def noted(name: str, waiting: Coroutine[Any, Any, int]) -> None:
            await waiting
            order.append(name)

        sent = [await level.acquire() for _ in range(4)]
        level.shrink(sent[0])
        tasks = [asyncio.create_task(noted("begins", level.acquire()))]
        tasks.append(asyncio.create_task(noted("follows", level.acquire(follows=True))))
        # The two that stay fill what is left of the level; the two that step back do so in the wrong order.
        tasks += [asyncio.create_task(noted(f"again {i}", level.again(sent[i]))) for i in (3, 1)]
        await turns()
        assert order == []
        for _ in range(4):
            level.release()
            await turns()
        await asyncio.gather(*tasks)
        assert level.in_flight == 2
        return order

    assert asyncio.run(main()) == ["again 1", "again 3", "follows", "begins"]


def test_while_one_pauses_nobody_new_takes_its_place() -> None:
    async def main() -> None:
        level = Level(2, start=2)
        number, _ = [await level.acquire() for _ in range(2)]
        pausing = asyncio.create_task(level.again(number, 3600))
        beginning = asyncio.create_task(level.acquire())
        await turns()
        assert not beginning.done()
        pausing.cancel()
        await turns()
        assert level.in_flight == 2 and not beginning.done(), "its place is still to be released"
        level.release()
        await beginning

    asyncio.run(main())


def test_places_come_to_nothing_when_some_are_cancelled_wherever_they_wait() -> None:
    async def main() -> None:
        level = Level(3, start=3)

        async def one(i: int) -> None:
            number = await level.acquire()
            try:
                for _ in range(3):
                    await asyncio.sleep(0)
                    level.shrink(number)
                    number = await level.again(number, 0.001 * (i % 2))
            finally:
                level.release()

        tasks = [asyncio.create_task(one(i)) for i in range(40)]
        for i in range(len(tasks)):
            await asyncio.sleep(0)
            if i % 3 == 0:
                tasks[i // 2].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert level.in_flight == 0
        for _ in range(1000):
            level.grow()
        assert [await level.acquire() for _ in range(3)] and level.in_flight == 3

    asyncio.run(main())


def test_nothing_is_sent_before_the_time_that_the_server_has_named() -> None:
    async def main() -> None:
        level, loop = Level(8, start=8), asyncio.get_running_loop()
        number, started = await level.acquire(), loop.time()
        level.hold(0.05)
        level.hold(0.01)

        async def sent_while_held(waiting: Coroutine[Any, Any, int]) -> tuple[int, bool]:
            return await waiting, level.is_held

        waiting = (level.acquire(), level.acquire(follows=True), level.again(number))
        found = await asyncio.gather(*map(sent_while_held, waiting))
        assert sorted(found) == [(2, False), (3, False), (4, False)]
        assert loop.time() - started > 0.049

    asyncio.run(main())


def test_the_load_comes_down_to_what_a_full_server_takes_at_a_time() -> None:
    """It takes eight and needs twenty turns of the loop for each; the level starts at 64."""

    async def main() -> None:
        level, in_hand, sent, answered, pushed_back = Level(128), 0, 0, 0, 0
        peaks = [0]  # the most in flight at a time, from each answer to the next

        async def one() -> None:
            nonlocal in_hand, sent, answered, pushed_back
            number = await level.acquire()
            while True:
                sent += 1
                peaks[-1] = max(peaks[-1], sent)
                await asyncio.sleep(0)
                if in_hand < 8:
                    break
                level.shrink(number)
                pushed_back, sent = pushed_back + 1, sent - 1
                number = await level.again(number)
            in_hand += 1
            await turns(20)
            in_hand, sent, answered = in_hand - 1, sent - 1, answered + 1
            peaks.append(0)
            level.grow()
            level.release()

        await asyncio.gather(*(one() for _ in range(256)))
        assert answered == 256 and peaks[0] == 64
        assert max(peaks[8:]) <= 10
        assert pushed_back < 64 + 32 + 16 + 256 / 8

    asyncio.run(main())
