"""Several servers of one model: the load is shared, and one that goes away costs nothing while another is up."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cai.config import EngineSection, ModelSection
from cai.engine import reach, replicas
from cai.engine.model import Generate, Sampling
from cai.engine.scripted import ScriptedProcess, ScriptedServer
from cai.errors import UserError
from cai.templates import Turn
from tests import runs


class Calm(NamedTuple):
    """A run against two servers that stayed up."""

    folder: Path
    urls: list[str]
    exports: tuple[bytes, bytes]
    accounting: dict[str, Any]
    shares: list[int]
    """How many requests each server was asked."""
    n_calls: int

    @property
    def ports(self) -> list[int]:
        return [int(url.rpartition(":")[2]) for url in self.urls]


def shared(folder: Path, name: str, urls: list[str]) -> Path:
    tree = runs.config(folder, url=urls[0], name=name, engine__outage_timeout_s=20)
    tree["models"]["policy"]["base_url"] = urls
    return runs.write_config(folder, tree)


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Calm:
    folder = tmp_path_factory.mktemp("replicas")
    runs.write_inputs(folder, n_prompts=12)
    with (
        ScriptedProcess(judge="coherent", count_keys=True) as one,
        ScriptedProcess(judge="coherent", count_keys=True) as other,
    ):
        urls = [one.url, other.url]
        said = runs.run_json(shared(folder, "calm", urls))
        shares = [int(server.stats()["bodies"]["distinct"]) for server in (one, other)]
    return Calm(folder, urls, runs.exports(said["run"]), said["accounting"], shares, said["calls"]["made"])


def test_replicas_share_the_work(calm: Calm) -> None:
    assert sum(calm.shares) == calm.n_calls and min(calm.shares) > 0.2 * calm.n_calls


def test_a_replica_that_dies_for_good_leaves_its_work_to_the_other(calm: Calm) -> None:
    with (
        ScriptedProcess(judge="coherent", port=calm.ports[0], faults="die@15", latency_ms=2) as dying,
        ScriptedProcess(judge="coherent", port=calm.ports[1], latency_ms=2),
    ):
        said = runs.run_json(shared(calm.folder, "rough", calm.urls))
        assert dying.process.wait() != 0
    assert (runs.exports(said["run"]), said["accounting"]) == (calm.exports, calm.accounting)


def test_a_replica_that_is_away_at_the_start_is_passed_over(calm: Calm) -> None:
    with ScriptedProcess(judge="coherent", port=calm.ports[1]):
        said = runs.run_json(shared(calm.folder, "late", calm.urls))
    assert (runs.exports(said["run"]), said["accounting"]) == (calm.exports, calm.accounting)


def test_servers_of_different_models_are_no_replicas(calm: Calm) -> None:
    with ScriptedProcess(models=("one",)) as one, ScriptedProcess(models=("other",)) as other:
        said = runs.cai("run", shared(calm.folder, "mixed", [one.url, other.url]), "--quiet", check=2).stderr
    assert "replicas of one model list different ones first, 'one', 'other'" in said


def late(first: dict[str, Any], then: dict[str, Any], *, wanted: str | None = None) -> tuple[set[str], int]:
    """Return who answers when the second of two servers comes after the first was looked at, and what it was asked."""

    async def main() -> tuple[set[str], int]:
        async with ScriptedServer() as gone:
            port = int(gone.url.rpartition(":")[2])
        one, other = ScriptedServer(**first), ScriptedServer(port=port, **then)
        async with AsyncExitStack() as opened:
            await opened.enter_async_context(one)
            section = ModelSection(base_url=(one.url, gone.url), served_name=wanted)
            settings = EngineSection(kind="scripted", max_model_len=1024)
            asking, endpoints = await reach.connect(section, settings, identity="m", tokenizer=reach.BYTES)
            for endpoint in endpoints:
                opened.push_async_callback(endpoint.close)
            await opened.enter_async_context(other)
            try:
                requests = [Generate((Turn("user", f"{i}?"),), Sampling(max_tokens=8), i) for i in range(16)]
                replies = await asyncio.gather(*(asking.generate(request) for request in requests))
                return {reply.server for reply in replies}, other.stats["asked"]
            except UserError:
                assert other.stats["asked"] == 0, "it is looked at before it is asked"
                raise

    return asyncio.run(main())


def test_a_replica_that_comes_late_is_asked_like_the_others() -> None:
    servers, n_asked = late({}, {})
    assert len(servers) == 2 and n_asked > 0


def test_a_replica_that_comes_late_with_another_model_is_refused() -> None:
    with pytest.raises(UserError, match="lists 'other' first, the other replicas 'one'"):
        late({"models": ("one",)}, {"models": ("other",)})
    servers, _ = late({"models": ("one", "both")}, {"models": ("other", "both")}, wanted="both")
    assert len(servers) == 2


def test_a_replica_that_comes_late_with_a_shorter_context_is_refused() -> None:
    """On `/generative_scoring` it would cut what the others read, without a word."""
    with pytest.raises(UserError, match="has a context of 256 tokens, requests are held to 1024"):
        late({"max_model_len": 1024}, {"max_model_len": 256})
    assert len(late({"max_model_len": 1024}, {"max_model_len": 2048})[0]) == 2


def test_a_replica_that_stays_away_is_asked_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """And whoever is looked for in vain is looked for by one, not by all that would ask it."""

    async def main() -> tuple[set[str], int]:
        async with ScriptedServer() as gone:
            pass
        async with ScriptedServer() as one, AsyncExitStack() as opened:
            section = ModelSection(base_url=(one.url, gone.url))
            asking, endpoints = await reach.connect(section, EngineSection(), identity="m", tokenizer=None)
            for endpoint in endpoints:
                opened.push_async_callback(endpoint.close)
            n_looks, first_model = 0, replicas._first_model

            async def counted(endpoint: Any) -> Any:
                nonlocal n_looks
                n_looks += 1
                return await first_model(endpoint)

            monkeypatch.setattr(replicas, "_first_model", counted)
            requests = [Generate((Turn("user", f"{i}?"),), Sampling(max_tokens=8), i) for i in range(16)]
            replies = await asyncio.gather(*(asking.generate(request) for request in requests))
            return {reply.server for reply in replies} - {one.url}, n_looks

    assert asyncio.run(main()) == (set(), 1)
