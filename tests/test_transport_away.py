"""Servers that vanish or hang: replicas take over, one alone is waited for, and every request ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest

from cai.config import EngineSection
from cai.engine import transport
from cai.engine.client import Client
from cai.engine.model import Generate, Reply, Sampling
from cai.engine.scripted import ScriptedServer, wire
from cai.engine.scripted.faults import FaultPlan
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Endpoint
from cai.errors import EngineError, RejectedError
from cai.templates import Turn

PATH = "/v1/chat/completions"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}
HANGS = "hang@1-;hang-health-ok"


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_BACKOFF_S", 0.002)
    monkeypatch.setattr(transport, "_LOOK_S", 0.01)


@asynccontextmanager
async def reached(*servers: ScriptedServer, **settings: Any) -> AsyncIterator[list[Endpoint]]:
    """Give the ways to servers. Whatever waits for a minute waits for nothing."""
    endpoints = [Endpoint(server.url, EngineSection(**settings)) for server in servers]
    async with asyncio.timeout(60):
        for endpoint in endpoints:
            await endpoint.open()
        try:
            yield endpoints
        finally:
            await asyncio.gather(*(endpoint.close() for endpoint in endpoints))


def vanish(endpoint: Endpoint, n: float = float("inf")) -> None:
    """Let the next `n` connections come to nothing, without a word, as to a host that is switched off."""
    connector = endpoint._open_session.connector
    assert connector is not None
    connect, left = connector.connect, n

    async def gone(*arguments: Any, **more: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise TimeoutError  # as aiohttp's own clock does; it makes ConnectionTimeoutError of it
        return await connect(*arguments, **more)

    connector.connect = gone  # type: ignore[method-assign]


async def ask(endpoints: list[Endpoint], n: int = 12, **settings: Any) -> list[Reply | BaseException]:
    """Return what becomes of `n` requests to replicas."""
    client = Client(endpoints, EngineSection(**settings), identity="m", name="scripted", tokenizer=ByteTokens())
    requests = [Generate((Turn("user", f"Tell me about {i}."),), Sampling(max_tokens=20), i) for i in range(n)]
    return await asyncio.gather(*(client.generate(request) for request in requests), return_exceptions=True)


def from_whom(replies: list[Reply | BaseException]) -> set[str]:
    for reply in replies:
        if isinstance(reply, BaseException):
            raise reply
    return {reply.server for reply in replies if isinstance(reply, Reply)}


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_host_that_vanishes_is_waited_for_and_stops_the_run_resumably() -> None:
    async def main() -> None:
        async with ScriptedServer() as server, reached(server, retries=1, outage_timeout_s=0.2) as (endpoint,):
            vanish(endpoint)
            with pytest.raises(EngineError, match="run the same command again") as caught:
                await endpoint.post(PATH, CHAT)
            assert type(caught.value) is EngineError

    asyncio.run(main())


def test_a_host_that_is_back_in_time_costs_no_try() -> None:
    async def main() -> int:
        async with ScriptedServer() as server, reached(server, retries=1) as (endpoint,):
            vanish(endpoint, 4)
            return (await endpoint.post(PATH, CHAT))[1]

    assert asyncio.run(main()) == 1


def test_one_that_answers_but_takes_no_connection_is_not_asked_for_ever() -> None:
    async def main() -> None:
        async with ScriptedServer() as server, reached(server, retries=3) as (endpoint,):
            n_sent = 0

            async def refused(path: str, body: bytes) -> Any:
                nonlocal n_sent
                n_sent += 1
                raise aiohttp.ConnectionTimeoutError

            endpoint._exchange = refused  # type: ignore[method-assign]
            with pytest.raises(RejectedError, match="gave up after 4 attempts, last: it takes no connection"):
                await endpoint.post(PATH, CHAT)
            assert n_sent == 4

    asyncio.run(main())


def test_one_that_broke_a_connection_and_vanished_is_waited_for() -> None:
    """Whoever serves it: a connection that breaks may be the last that is heard of it."""

    async def main() -> None:
        async with ScriptedServer(faults="reset@1-") as server, reached(server, retries=0) as (endpoint,):
            n_looks = 0

            async def looks(path: str, timeout_s: float) -> tuple[int, bytes]:
                nonlocal n_looks
                n_looks += 1
                if n_looks < 4:
                    raise aiohttp.ConnectionTimeoutError
                return 200, b"{}"

            endpoint._get = looks  # type: ignore[method-assign]
            with pytest.raises(RejectedError, match="gave up after 1 attempts"):
                await endpoint.post(PATH, CHAT)
            assert n_looks == 4

    asyncio.run(main())


def test_a_replica_whose_host_vanishes_leaves_its_work_to_the_other() -> None:
    async def main() -> None:
        async with ScriptedServer() as one, ScriptedServer() as other, reached(one, other) as (gone, there):
            vanish(gone, 40)
            assert from_whom(await ask([gone, there])) == {there.url} and gone.n_answered == 0
            await until(lambda: gone.is_up)
            assert from_whom(await ask([gone, there])) == {gone.url, there.url}

    asyncio.run(main())


@pytest.mark.parametrize("counts", [True, False])
def test_a_replica_that_hangs_leaves_its_work_to_the_other_until_it_answers_again(counts: bool) -> None:
    settings: dict[str, Any] = {"stall_timeout_s": 0.2, "request_timeout_s": 300 if counts else 0.4}

    async def main() -> None:
        async with ScriptedServer(faults=HANGS) as one, ScriptedServer() as other:
            async with reached(one, other, **settings) as (hung, well):
                if not counts:
                    one.api._routes[b"GET", b"/metrics"] = lambda _: wire.Reply(404)
                assert from_whom(await ask([hung, well])) == {well.url}
                assert await hung.get("/v1/models") is not None and not hung.is_up
                n_asked = one.stats["asked"]
                assert from_whom(await ask([hung, well], 30)) == {well.url}
                await until(lambda: one.stats["asked"] > n_asked + 1)
                assert not hung.is_up, "it still hangs on the one request that it is asked again and again"
                one.api.plan = FaultPlan()
                await until(lambda: hung.is_up)
                assert from_whom(await ask([hung, well], 30)) == {hung.url, well.url}

    asyncio.run(main())


def test_every_request_ends_when_all_replicas_hang() -> None:
    async def main() -> None:
        async with ScriptedServer(faults=HANGS) as one, ScriptedServer(faults=HANGS) as other:
            async with reached(one, other, stall_timeout_s=0.2, retries=1) as endpoints:
                ends = await ask(endpoints)
                assert all(isinstance(end, RejectedError) and "no progress" in str(end) for end in ends)
                assert [endpoint.is_up for endpoint in endpoints].count(False) == 1

    asyncio.run(main())


def test_a_request_on_which_every_replica_hangs_ends_though_they_come_back() -> None:
    """Cut to one token it is answered, so that each of them is up again at once."""

    async def main() -> None:
        async with ScriptedServer() as one, ScriptedServer() as other:
            for server in (one, other):
                long, well = FaultPlan(HANGS), FaultPlan()
                server.api.plan.pick = lambda number, path, body, long=long, well=well: (  # type: ignore[method-assign]
                    long if b'"max_tokens":20' in body else well
                ).pick(number, path, body)
            async with reached(one, other, stall_timeout_s=0.2, retries=1) as endpoints:
                (end,) = await ask(endpoints, 1)
                assert isinstance(end, RejectedError)
                assert all(endpoint.n_answered == 0 for endpoint in endpoints)

    asyncio.run(main())


def test_a_replica_that_pushes_everything_back_leaves_its_work_to_the_other() -> None:
    async def main() -> None:
        async with ScriptedServer(faults="503@1-") as one, ScriptedServer() as other:
            async with reached(one, other, outage_timeout_s=0.2) as (full, well):
                assert from_whom(await ask([full, well])) == {well.url} and not full.is_up
                one.api.plan = FaultPlan()
                await until(lambda: full.is_up)

    asyncio.run(main())
