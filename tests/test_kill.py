"""Kill the run anywhere; the same command again ends where an undisturbed run does, and repeats nothing it knew."""

from __future__ import annotations

import random
import signal
import subprocess
from pathlib import Path

from cai.engine.scripted import ScriptedProcess
from tests import runs

N_KILLS = 50
N_PROMPTS = 300
IN_FLIGHT = 16


def test_fifty_kills_lose_nothing_and_repeat_nothing(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=N_PROMPTS)
    changes = {"engine__concurrency": IN_FLIGHT, "engine__prompts_in_flight": IN_FLIGHT}
    with ScriptedProcess(judge="coherent", count_keys=True) as server:
        tree = runs.config(tmp_path, url=server.url, name="undisturbed", **changes)
        undisturbed = runs.run_json(runs.write_config(tmp_path, tree))
    with ScriptedProcess(judge="coherent", count_keys=True, latency_ms=60, port=_port(server.url)) as slow:
        tree = runs.config(tmp_path, url=slow.url, name="killed", **changes)
        path = runs.write_config(tmp_path, tree)
        n_killed = _kill_until_done(path, random.Random(7))
        killed = runs.run_json(path)
        stats = slow.stats()
    assert n_killed == N_KILLS
    assert runs.exports(killed["run"]) == runs.exports(undisturbed["run"])
    assert killed["accounting"] == undisturbed["accounting"]
    assert stats["bodies"]["distinct"] == undisturbed["calls"]["made"]
    assert stats["bodies"]["repeated"] <= N_KILLS * IN_FLIGHT
    assert max(stats["bodies"]["counts"].values()) <= 1 + N_KILLS


def _port(url: str) -> int:
    """The servers are named in the config: both runs must ask the same one."""
    return int(url.rsplit(":", 1)[1])


def _kill_until_done(path: Path, chance: random.Random) -> int:
    """Start the run and kill it at a random moment, again and again; return how many kills hit it alive."""
    n_killed = 0
    while n_killed < N_KILLS:
        process = subprocess.Popen(runs.command("run", path, "--quiet"), stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=chance.uniform(0.2, 1.1))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            n_killed += 1
        else:
            raise AssertionError(f"the run ended (exit {code}) after {n_killed} kills; slow the server down")
    return n_killed
