from __future__ import annotations

import asyncio
import json

import aiohttp
import pytest

from cai.engine.scripted import Script, ScriptedServer
from cai.engine.scripted.__main__ import main
from cai.engine.scripted.api import Api
from cai.engine.scripted.faults import FaultPlan
from cai.engine.scripted.wire import Request
from tests.scripted_asks import (
    LONG,
    SHORT,
    judge_prompt,
    outcome,
    post,
    scored,
    with_server,
)


def test_faults_by_number_fall_on_those_requests() -> None:
    async def ask(client: aiohttp.ClientSession, server: ScriptedServer) -> list[str]:
        outcomes = [await outcome(client, f"Hello {i}") for i in range(1, 9)]
        assert server.stats["faults"] == {"503": 2, "reset": 1, "truncate": 1, "badjson": 1, "500": 1}
        return outcomes

    found = with_server(ask, faults="503@2-3;reset@4;truncate@5;badjson@6;500@8-")
    assert found[:3] == ["200", "503", "503"]
    assert found[3] in ("ServerDisconnectedError", "ClientOSError", "ClientConnectionResetError")
    assert found[4:] == ["ClientPayloadError", "JSONDecodeError", "200", "500"]


def test_faults_by_share_repeat_in_every_run_and_let_a_retry_through() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> list[list[str]]:
        return [[await outcome(client, f"Hello {i}") for _ in range(6)] for i in range(60)]

    first = with_server(ask, faults="429:0.3")
    assert first == with_server(ask, faults="429:0.3")
    assert 60 <= sum(row.count("429") for row in first) <= 160
    assert all("200" in row for row in first)


def test_retry_after_and_vllms_error_body_come_with_a_status() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        async with client.post("/v1/completions", json=scored("Hello")) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "0.2")
            assert (await reply.json())["error"]["code"] == 429

    with_server(ask, faults="429,retry-after=0.2")


def test_replies_without_logprobs_or_cut_short() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        prompt = judge_prompt(SHORT, LONG)
        bare = await post(client, "/v1/completions", **scored(prompt))
        assert bare["choices"][0]["logprobs"] is None and bare["choices"][0]["text"] in "AB"
        score = await post(client, "/generative_scoring", query="", items=[prompt], label_token_ids=[65, 66])
        assert "score" not in score["data"][0]
        whole = await post(client, "/v1/completions", prompt="Hello", max_tokens=900)
        cut = await post(client, "/v1/completions", prompt="Hello", max_tokens=900)
        assert cut["choices"][0]["finish_reason"] == "length"
        assert whole["choices"][0]["text"].startswith(cut["choices"][0]["text"])
        assert whole["choices"][0]["finish_reason"] == "stop"

    with_server(ask, faults="nologprobs@1-2;cut@4")


@pytest.mark.parametrize("keeps_health", [True, False])
def test_a_hang_takes_health_with_it_unless_told_otherwise(keeps_health: bool) -> None:
    async def ask(client: aiohttp.ClientSession, server: ScriptedServer) -> None:
        hung = asyncio.create_task(outcome(client))
        while not server.api.is_hanging:
            await asyncio.sleep(0)
        health = asyncio.create_task(client.get("/health").__aenter__())
        # The answer to a later request shows that the server had the one before it in hand.
        assert await outcome(client, "another") == "200"
        async with client.get("/stats") as reply:
            assert (await reply.json())["requests"]["/health"] == 1
        assert health.done() is keeps_health and not hung.done()
        hung.cancel(), health.cancel()
        await asyncio.gather(hung, health, return_exceptions=True)

    with_server(ask, faults="hang@1;hang-health-ok" if keeps_health else "hang@1")


def test_delays_add_up_and_a_slow_request_meets_the_next_fault_too() -> None:
    plan = FaultPlan("slow=200;slow@1=50;500@1;503@1")
    assert [fault.kind for fault in plan.pick(1, b"/", b"")] == ["slow", "slow", "500"]
    assert sum(fault.delay_s for fault in plan.pick(1, b"/", b"")) == 0.25
    assert [fault.kind for fault in plan.pick(2, b"/", b"")] == ["slow"]


def test_a_busy_server_pushes_back_what_is_beyond_its_hands() -> None:
    async def ask(client: aiohttp.ClientSession, server: ScriptedServer) -> None:
        assert [await outcome(client, f"Hello {i}") for i in range(3)] == ["200"] * 3, "one at a time"
        both = [asyncio.create_task(outcome(client, f"Hello {i}")) for i in range(2)]
        while server.stats["asked"] < 5:
            await asyncio.sleep(0)
        async with client.post("/v1/completions", json=scored("Hello")) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (429, "0.2")
        assert server.stats["faults"] == {"busy": 1, "hang": 2}
        for hung in both:
            hung.cancel()
        await asyncio.gather(*both, return_exceptions=True)

    with_server(ask, faults="busy>2,retry-after=0.2;hang@4-5")


def test_replies_come_late_by_the_latency_and_some_jitter() -> None:
    api = Api(Script(latency_ms=60, jitter_ms=20), die=lambda: None)
    head = b"content-type: application/json"
    bodies = [json.dumps(scored(f"Hello {i}")).encode() for i in range(50)]
    delays = [api.answer(Request(b"POST", b"/v1/completions", b"", head, body)).delay_s for body in bodies]
    assert all(0.06 <= delay <= 0.08 for delay in delays) and len(set(delays)) > 40
    assert api.answer(Request(b"GET", b"/health", b"", b"", b"")).delay_s == 0


@pytest.mark.parametrize(
    "spec",
    [
        *("399", "sloww=2", "slow", "slow:2=5", "429:x", "429@9-3", "429@0", "reset,retry-after=1", "429,wait=1", "@3"),
        *("busy", "busy>0", "busy=8"),
    ],
)
def test_a_fault_spec_that_is_none_is_one_message_and_exit_2(spec: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--faults", spec]) == 2
    message = capsys.readouterr().err
    assert message.startswith("--faults: ") and message.count("\n") == 1 and spec.split(",")[0] in message
