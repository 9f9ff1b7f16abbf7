"""Several servers of one model: the load is shared, and one that goes away costs nothing while another is up."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from cai.engine.scripted import ScriptedProcess
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
