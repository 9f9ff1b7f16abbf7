"""Servers that push back: all requests get through in the end, and none is kept waiting for nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cai.config import EngineSection
from cai.engine import transport
from cai.engine.scripted import ScriptedServer
from cai.engine.scripted.faults import Fault
from cai.engine.transport import Endpoint
from cai.errors import EngineError, GaveUpError

PATH = "/v1/chat/completions"
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 40}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "_BACKOFF_S", 0.002)


def with_server(
    work: Callable[[Endpoint, ScriptedServer], Awaitable[Any]], script: dict[str, Any], **settings: Any
) -> Any:
    """Return what `work` gives back. Who waits for twenty seconds waits for nothing."""

    async def main() -> Any:
        async with ScriptedServer(**script) as server, asyncio.timeout(20):
            endpoint = Endpoint(server.url, EngineSection(**settings))
            await endpoint.open()
            try:
                return await work(endpoint, server)
            finally:
                await endpoint.close()

    return asyncio.run(main())


def test_a_server_that_takes_eight_at_a_time_answers_sixty_four() -> None:
    """They are pushed back once or twice each: the load comes down to what the server takes, for all of them."""

    async def work(endpoint: Endpoint, server: ScriptedServer) -> tuple[int, int]:
        answers = await asyncio.gather(*(endpoint.post(PATH, CHAT) for _ in range(64)))
        assert sum(attempts - 1 for _, attempts, _ in answers) == server.stats["faults"]["busy"]
        return len(answers), server.stats["faults"]["busy"]

    n_answered, n_pushed_back = with_server(work, {"faults": "busy>8", "latency_ms": 60})
    assert n_answered == 64 and n_pushed_back < 128


def test_a_push_back_does_not_count_as_a_try() -> None:
    async def work(endpoint: Endpoint, server: ScriptedServer) -> int:
        return (await endpoint.post(PATH, CHAT))[1]

    assert with_server(work, {"faults": "429@1-4;503@5-7"}, retries=1) == 8


def test_retry_after_holds_back_who_has_not_been_pushed_back_too() -> None:
    async def work(endpoint: Endpoint, server: ScriptedServer) -> int:
        first = asyncio.create_task(endpoint.post(PATH, CHAT))
        while not server.stats["faults"]:
            await asyncio.sleep(0.001)
        assert await endpoint.get("/v1/models")  # by now it has heard that it was pushed back
        waiting = [first, *(asyncio.create_task(endpoint.post(PATH, CHAT)) for _ in range(20))]
        for _ in range(5):
            assert await endpoint.get("/v1/models")
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        assert endpoint.level.in_flight == 0
        return int(server.stats["asked"])

    assert with_server(work, {"faults": "429@1,retry-after=100"}) == 1


@pytest.mark.parametrize("fault", ["500", "503"])
def test_nothing_is_waited_for_behind_the_last_try(fault: str) -> None:
    async def work(endpoint: Endpoint, server: ScriptedServer) -> int:
        with pytest.raises(EngineError, match=f"{fault} scripted"):
            await endpoint.post(PATH, CHAT)
        return int(server.stats["asked"])

    assert with_server(work, {"faults": f"{fault}@1-,retry-after=100"}, retries=0, outage_timeout_s=1e-9) == 1


def test_a_server_that_pushes_everything_back_stops_the_run_resumably() -> None:
    async def work(endpoint: Endpoint, server: ScriptedServer) -> list[Any]:
        return await asyncio.gather(*(endpoint.post(PATH, CHAT) for _ in range(3)), return_exceptions=True)

    errors = with_server(work, {"faults": "503@1-"}, outage_timeout_s=0.3)
    assert {type(error) for error in errors} == {EngineError}
    assert all("run the same command again" in str(error) for error in errors)


def test_what_is_pushed_back_when_all_others_are_answered_is_given_up_alone() -> None:
    async def work(endpoint: Endpoint, server: ScriptedServer) -> list[Any]:
        large = CHAT | {"messages": [{"role": "user", "content": "too much"}]}
        server.api.plan.pick = lambda number, path, body: (  # type: ignore[method-assign]
            [Fault("429")] if b"too much" in body else []
        )
        first = asyncio.create_task(endpoint.post(PATH, large))
        while not server.stats["faults"]:
            await asyncio.sleep(0.001)
        return await asyncio.gather(first, *(endpoint.post(PATH, CHAT) for _ in range(9)), return_exceptions=True)

    error, *answers = with_server(work, {}, outage_timeout_s=0.3)
    assert type(error) is GaveUpError and "429" in str(error)
    assert all(isinstance(answer, tuple) for answer in answers)
