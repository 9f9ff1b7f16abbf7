"""The watchdog: a server that hangs is told from one that is slow by the tokens it counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from cai.config import EngineSection
from cai.engine import transport
from cai.engine.scripted import ScriptedServer
from cai.engine.scripted.wire import Reply
from cai.engine.transport import Endpoint
from cai.errors import RejectedError

PATH = "/v1/chat/completions"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}


def counting(n_looks: int) -> web.Response:
    return web.Response(text=f'vllm:generation_tokens_total{{model_name="m"}} {n_looks}.0\n')


def without_counters(n_looks: int) -> web.Response:
    return web.Response(text="# HELP python_gc_objects_collected_total Objects collected during gc\n")


def of_status(status: int) -> Callable[[int], web.Response]:
    return lambda n_looks: web.Response(status=status)


@pytest.mark.parametrize(
    "metrics", [counting, without_counters, of_status(401), of_status(404)], ids=["counts", "no counters", "401", "404"]
)
def test_a_slow_answer_is_waited_for_while_tokens_are_made_or_not_counted(
    metrics: Callable[[int], web.Response],
) -> None:
    """It comes when the server has been looked at several times over."""
    n_looks = n_asked = 0
    looked_at = asyncio.Event()

    async def looked(request: web.Request) -> web.Response:
        nonlocal n_looks
        n_looks += 1
        if n_looks == 6:
            looked_at.set()
        return metrics(n_looks)

    async def answer(request: web.Request) -> web.Response:
        nonlocal n_asked
        n_asked += 1
        await looked_at.wait()
        return web.json_response({})

    async def main() -> int:
        app = web.Application()
        app.add_routes([web.get("/metrics", looked), web.post(PATH, answer)])
        async with TestServer(app) as server:
            endpoint = Endpoint(f"http://127.0.0.1:{server.port}", EngineSection(stall_timeout_s=0.2))
            await endpoint.open()
            try:
                return (await endpoint.post(PATH, CHAT))[1]
            finally:
                await endpoint.close()

    assert asyncio.run(main()) == n_asked == 1


def ask(faults: str, metrics: Reply | None = None, **settings: float) -> int:
    """Return how many attempts a request takes on a server that answers `/metrics` so; None is as vLLM does."""

    async def main() -> int:
        async with ScriptedServer(faults=faults) as server:
            if metrics is not None:
                server.api._routes[b"GET", b"/metrics"] = lambda _: metrics
            endpoint = Endpoint(server.url, EngineSection(**settings))
            await endpoint.open()
            try:
                return (await endpoint.post(PATH, CHAT))[1]
            finally:
                await endpoint.close()

    return asyncio.run(main())


@pytest.mark.parametrize("metrics", [None, Reply(ending="hang")], ids=["stand still", "not told"])
def test_counts_that_stand_still_or_are_not_even_told_are_a_hang(
    metrics: Reply | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "_PROBE_S", 0.1)
    with pytest.raises(RejectedError, match="gave up after 1 attempts, last: no progress"):
        ask("hang@1-;hang-health-ok", metrics, stall_timeout_s=0.2, request_timeout_s=60, retries=0)


def test_where_no_tokens_are_counted_each_request_ends_by_its_own_clock() -> None:
    with pytest.raises(RejectedError, match=r"gave up after 2 attempts, last: no answer in 0\.4 s"):
        ask("hang@1-;hang-health-ok", Reply(404), stall_timeout_s=0.05, request_timeout_s=0.4, retries=1)


def test_a_hung_server_of_ours_may_take_longer_to_start_than_an_outage_may_last() -> None:
    """While it is started again, those whose connections it broke wait, and nobody starts it a second time."""
    revived: list[bool] = []

    async def main() -> list[int]:
        async with ScriptedServer(faults="hang@1-3;hang-health-ok") as server:

            async def revive(*, hung: bool = False) -> None:
                revived.append(hung)
                if hung:
                    models = server.api._routes[b"GET", b"/v1/models"]
                    server.api._routes[b"GET", b"/v1/models"] = lambda _: Reply(503)
                    for connection in tuple(server._shared.connections):
                        connection.abort()
                    await asyncio.sleep(1)
                    server.api._routes[b"GET", b"/v1/models"] = models

            settings = EngineSection(stall_timeout_s=0.2, outage_timeout_s=0.1)
            endpoint = Endpoint(server.url, settings, revive=revive)
            await endpoint.open()
            try:
                answers = await asyncio.gather(*(endpoint.post(PATH, CHAT) for _ in range(3)))
            finally:
                await endpoint.close()
            return [attempts for _, attempts, _ in answers]

    assert asyncio.run(main()) == [2, 2, 2] and revived == [True]
