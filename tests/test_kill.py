"""Kill the run anywhere; the same command again ends where an undisturbed run does, and repeats nothing it knew."""

from __future__ import annotations

import multiprocessing
import random
import signal
import sys
from pathlib import Path

from cai.cli import main
from cai.engine.scripted import ScriptedProcess
from tests import runs

N_KILLS = 50
N_PROMPTS = 300
IN_FLIGHT = 16
CALLS_A_REQUEST = 4
"""A comparison's two asked principles in both orders travel together."""
MOST_CALLS = 100
"""Calls between two kills at most: fifty times half of that, and what is in flight, is most of the run."""


def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=N_PROMPTS)
    changes = {"engine__concurrency": IN_FLIGHT, "engine__prompts_in_flight": IN_FLIGHT}
    with ScriptedProcess(judge="coherent", count_keys=True) as server:
        tree = runs.config(tmp_path, url=server.url, name="undisturbed", **changes)
        undisturbed = runs.run_json(runs.write_config(tmp_path, tree))
    with ScriptedProcess(judge="coherent", count_keys=True, latency_ms=20, port=_port(server.url)) as slow:
        tree = runs.config(tmp_path, url=slow.url, name="killed", **changes)
        path = runs.write_config(tmp_path, tree)
        n_killed = _kill_again_and_again(path, slow, random.Random(7))
        killed = runs.run_json(path)
        stats = slow.stats()
    assert n_killed == N_KILLS
    assert runs.exports(killed["run"]) == runs.exports(undisturbed["run"])
    assert killed["accounting"] == undisturbed["accounting"]
    assert stats["bodies"]["distinct"] == undisturbed["calls"]["made"]
    assert stats["bodies"]["repeated"] <= N_KILLS * IN_FLIGHT * CALLS_A_REQUEST
    assert max(stats["bodies"]["counts"].values()) <= 1 + N_KILLS


def _port(url: str) -> int:
    """The servers are named in the config: both runs must ask the same one."""
    return int(url.rsplit(":", 1)[1])


def _kill_again_and_again(path: Path, server: ScriptedProcess, chance: random.Random) -> int:
    """Start the run and kill it after a random number of calls, again and again; return how many kills hit it alive.

    Every run is forked from a process that has imported everything, so that kills hit work and not imports.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, "cai.cli.load", "cai.cli.terminal", "cai.pipeline.conduct", "cai.report"])
    for n_killed in range(N_KILLS):
        process = context.Process(target=_run, args=(str(path),))
        process.start()
        until = server.stats()["bodies"]["distinct"] + chance.randint(0, MOST_CALLS)
        while server.stats()["bodies"]["distinct"] < until:
            process.join(timeout=0.002)
            assert process.exitcode is None, f"the run ended (exit {process.exitcode}) after {n_killed} kills"
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    return N_KILLS


def _run(path: str) -> None:
    sys.exit(main(["run", path, "--quiet"]))
