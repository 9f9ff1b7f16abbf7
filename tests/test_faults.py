"""Servers that fail in every way they can: the run's result is the same, or the failure is told once and clearly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest

from cai.config import EngineSection
from cai.engine.scripted import ScriptedProcess, ScriptedServer
from cai.engine.transport import Endpoint
from cai.engine.troubles import retry_after
from cai.errors import EngineError, RejectedError, UserError
from tests import runs

CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 400}


def ask(faults: str | None, work: Callable[[Endpoint], Awaitable[Any]], **settings: Any) -> tuple[Any, dict[str, Any]]:
    """Return what `work` gives back on a server with `faults`, and the server's counts."""

    async def main() -> tuple[Any, dict[str, Any]]:
        async with ScriptedServer(**({"faults": faults} if faults else {})) as server:
            endpoint = Endpoint(server.url, EngineSection(**settings))
            await endpoint.open()
            try:
                return await work(endpoint), server.stats
            finally:
                await endpoint.close()

    return asyncio.run(main())


async def chat(endpoint: Endpoint) -> tuple[Any, int, float]:
    return await endpoint.post("/v1/chat/completions", CHAT)


@pytest.mark.parametrize(
    "fault", ["429@1-2", "500@1-2", "502@1-2", "503@1-2", "504@1-2", "reset@1-2", "truncate@1-2", "badjson@1-2"]
)
def test_what_may_pass_is_tried_again(fault: str) -> None:
    (answer, attempts, _), stats = ask(fault, chat)
    assert attempts == 3 and answer["choices"][0]["message"]["content"]
    assert stats["asked"] == 3


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_what_will_never_pass_is_sent_once(status: int) -> None:
    async def work(endpoint: Endpoint) -> str:
        with pytest.raises(RejectedError) as caught:
            await chat(endpoint)
        return str(caught.value)

    said, stats = ask(f"{status}@1", work)
    assert str(status) in said and stats["asked"] == 1


@pytest.mark.parametrize("status", [401, 403])
def test_bad_credentials_stop_the_run_at_once(status: int) -> None:
    async def work(endpoint: Endpoint) -> None:
        with pytest.raises(EngineError, match="api_key_env"):
            await chat(endpoint)

    _, stats = ask(f"{status}@1-", work)
    assert stats["asked"] == 1


def test_retry_after_is_honoured() -> None:
    async def work(endpoint: Endpoint) -> float:
        started = time.monotonic()
        await chat(endpoint)
        return time.monotonic() - started

    waited, _ = ask("429@1,retry-after=0.6", work)
    assert waited >= 0.6


def test_retry_after_may_name_a_date() -> None:
    def after(said: str) -> float | None:
        return retry_after({"Retry-After": said})

    assert 50 < after(format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)) <= 60
    assert after("Wed, 21 Oct 2015 07:28:00 GMT") == after("0") == 0 and after("0.5") == 0.5
    assert after("99999") == after("Fri, 31 Dec 2199 23:59:59 GMT") == 120
    assert [after(said) for said in ("", "soon", "nan", "-1", "31 Dec 2199 23:59:59 -0000", "²")] == [None] * 6


def test_giving_up_names_the_trouble() -> None:
    async def work(endpoint: Endpoint) -> None:
        with pytest.raises(RejectedError, match="gave up after 3 attempts, last: 500"):
            await chat(endpoint)

    _, stats = ask("500@1-", work, retries=2)
    assert stats["asked"] == 3


def test_a_hang_behind_a_green_health_is_noticed() -> None:
    (_, attempts, _), _ = ask("hang@1;hang-health-ok", chat, stall_timeout_s=0.4)
    assert attempts == 2


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("ftp://localhost:1", "expected http"),
        ("localhost:8000", "expected http"),
        ("http://user:secret@localhost:1", "holds credentials"),
        ("http://example.org", "unencrypted"),
    ],
)
def test_unsafe_addresses_are_refused(url: str, said: str) -> None:
    with pytest.raises(UserError, match=said) as caught:
        Endpoint(url, EngineSection(), api_key="key")
    assert "secret" not in str(caught.value)


def test_a_redirect_is_not_followed() -> None:
    async def work(endpoint: Endpoint) -> None:
        with pytest.raises((RejectedError, EngineError)):
            await chat(endpoint)

    ask("404@1-", work)


TROUBLES = "429:0.05,retry-after=0.05;500:0.03;503:0.03;reset:0.03;truncate:0.03;badjson:0.03"


def test_a_run_through_every_trouble_ends_like_an_undisturbed_one(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    with ScriptedProcess(judge="coherent") as server:
        port = int(server.url.rsplit(":", 1)[1])
        calm = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, name="calm")))
    with ScriptedProcess(judge="coherent", port=port, faults=TROUBLES) as server:
        rough = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, name="rough")))
        assert sum(server.stats()["faults"].values()) > 10
    assert runs.exports(calm["run"]) == runs.exports(rough["run"])


def test_a_server_that_dies_five_times_costs_nothing_but_its_restarts(tmp_path: Path) -> None:
    """The run's own server is started again each time; every answer is still asked for and kept."""
    runs.write_inputs(tmp_path, n_prompts=30)
    calm = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, name="calm")))
    tree = runs.config(tmp_path, name="rough", engine__args=["--faults", "die@60", "--latency-ms", "1"])
    rough = runs.run_json(runs.write_config(tmp_path, tree))
    assert runs.exports(rough["run"]) == runs.exports(calm["run"])
    assert rough["accounting"] == calm["accounting"]


def test_a_server_that_stays_away_stops_the_run_resumably(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    with ScriptedProcess() as server:
        url = server.url
    tree = runs.config(tmp_path, url=url, engine__outage_timeout_s=1)
    said = runs.cai("run", runs.write_config(tmp_path, tree), "--quiet", check=1).stderr
    assert "no answer" in said or "lists no model" in said


def test_an_unusable_key_variable_is_named(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    tree = runs.config(tmp_path, url="http://127.0.0.1:9")
    tree["models"]["policy"]["api_key_env"] = "CAI_TEST_KEY_THAT_IS_NOT_SET"
    said = runs.cai("run", runs.write_config(tmp_path, tree), "--quiet", check=2).stderr
    assert "CAI_TEST_KEY_THAT_IS_NOT_SET" in said
