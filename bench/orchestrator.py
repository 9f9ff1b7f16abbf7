"""What one `cai` process bears, against a scripted server that answers at once.

    python -m bench.orchestrator [--json] [--rounds 3] [--memory 10000 200000] [--rerun 10000]

Speed: the same judgments (16 principles, both orders) batched, one request each, and through the bare `openai` client,
which stores nothing. The answers lie in a run beside, so that all three send judgments and nothing else. Memory: the
peak of whole runs of two sizes. Re-run: a finished run once more, then `--verify`.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import workload
from bench.show import machine, show
from cai.cli.load import load_config
from cai.engine.scripted import ScriptedProcess
from cai.executors import local
from cai.pipeline.conduct import Conductor
from cai.pipeline.meter import Meter

_ROADS: dict[str, tuple[int, dict[str, Any]]] = {
    "batched": (600, {}),
    "shares": (600, {"judge": {"max_outside_mass": 1}}),
    "single": (200, {"engine": {"fast_paths": False}}),
}
"""Prompts and settings: token ids by the batch, the same where `/generative_scoring` may be taken, and one by one."""
_BARE = 1000
"""Requests of the bare client: like the prompts of ours some seconds on two cores."""


class Timed(Conductor):
    """A conductor that tells what its walks took."""

    wall_s = cpu_s = 0.0

    async def walk_all(self, *arguments: Any, **options: Any) -> None:
        """As Conductor."""
        wall, cpu = time.monotonic(), time.process_time()
        await super().walk_all(*arguments, **options)
        self.wall_s += time.monotonic() - wall
        self.cpu_s += time.process_time() - cpu


def worker(path: str) -> dict[str, Any]:
    """Do a whole run as `cai run` does and return what it took: the walk's seconds, judgments, peak memory.

    The scripted server starts within the walk, when it is first asked; the bare client finds its own running.
    """
    from cai.report import headline, kept_report, write_report

    started = time.monotonic()
    config, near = load_config(path, [])
    meter = Meter()
    conductor = Timed(config, near=near, meter=meter)
    result = local.run(conductor.run())
    if not kept_report(config.run.dir):
        write_report(config.run.dir)
    headline(config.run.dir)
    return {
        "calls": result.calls,
        "judgments": meter.tally.by_kind.get("score", 0),
        "wall_s": conductor.wall_s - sum(s.seconds for s in meter.stages if s.name.startswith("start server")),
        "cpu_s": conductor.cpu_s,
        "whole_s": time.monotonic() - started,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def _in_process(*arguments: str) -> dict[str, Any]:
    """Return what a command of this folder prints, run in a process of its own."""
    done = subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout)


def speed(folder: Path, rounds: int) -> dict[str, Any]:
    """Return the rates of every road and of the bare client, round by round, and the medians of the ratios."""
    found: list[dict[str, Any]] = []
    for road, (n_prompts, _) in _ROADS.items():
        workload.write(folder / road, n_prompts=n_prompts, n_principles=1)
        _in_process("bench.orchestrator", "--worker", str(workload.config(folder / road, "answers")))
        workload.write(folder / road, n_prompts=n_prompts)
    for i in range(rounds):
        made: dict[str, Any] = {}
        for road, (_, settings) in _ROADS.items():
            beside = folder / road / f"round-{i}"  # alone with the answers: nothing of an earlier round is reused
            shutil.copytree(folder / road / "runs" / "answers", beside / "answers")
            run = {"dir": str(beside / "judged"), "reuse": True}
            config = workload.config(folder / road, f"judged-{i}", run=run, **settings)
            took = _in_process("bench.orchestrator", "--worker", str(config))
            made[road] = _rates(took["judgments"], took)
        with ScriptedProcess() as server:
            run = folder / "single" / f"round-{i}" / "judged"
            took = _in_process("bench.bare", "openai", server.url, str(run), str(_BARE))
            made["openai"] = _rates(took["requests"], took)
        found.append(made)
    ratios = {
        f"{road}_x{suffix}": statistics.median(m[road][of] / m["openai"][of] for m in found)
        for road in _ROADS
        for suffix, of in (("", "per_s"), ("_by_cpu", "per_cpu_s"))
    }
    return {"rounds": found, **ratios}


def _rates(n: int, took: dict[str, Any]) -> dict[str, float]:
    return {"n": n, "per_s": n / took["wall_s"], "per_cpu_s": n / took["cpu_s"]}


def memory(folder: Path, sizes: list[int]) -> dict[str, Any]:
    """Return the peak memory of a whole run of each size: two samples a prompt, compared under one principle."""
    found = {}
    for n_prompts in sizes:
        inputs = folder / f"memory-{n_prompts}"
        workload.write(inputs, n_prompts=n_prompts, n_principles=1)
        config = workload.config(inputs, "run", prompts={"held_out": 0.01, "held_out_limit": 100})
        found[str(n_prompts)] = _in_process("bench.orchestrator", "--worker", str(config))
    peaks = [took["peak_mb"] for took in found.values()]
    return {"sizes": found, "growth_mb": peaks[-1] - peaks[0]}


def _children_s() -> float:
    """Return the CPU seconds of the processes that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def rerun(folder: Path, n_prompts: int) -> dict[str, Any]:
    """Return what a finished run takes when it is run again, and when it is verified."""
    inputs = folder / "rerun"
    workload.write(inputs, n_prompts=n_prompts)
    config = workload.config(inputs, "run")
    first = _in_process("bench.orchestrator", "--worker", str(config))
    started, cpu = time.monotonic(), _children_s()
    again = _in_process("cai", "run", str(config), "--quiet", "--json")
    seconds, cpu = time.monotonic() - started, _children_s() - cpu
    started = time.monotonic()
    verified = _in_process("cai", "run", str(config), "--quiet", "--json", "--verify")
    return {
        "first": first,
        "again_s": seconds,
        "again_cpu_s": cpu,
        "again_calls": again["calls"]["made"],
        "verify_s": time.monotonic() - started,
        "verified": verified["checked"],
        "n_faults": verified["n_faults"],
    }


def measure(rounds: int, sizes: list[int], n_rerun: int) -> dict[str, Any]:
    """Return everything."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        found: dict[str, Any] = {"bench": "orchestrator", **machine()}
        if rounds:
            found["speed"] = machine() | speed(folder, rounds)
        if sizes:
            found["memory"] = machine() | memory(folder, sizes)
        if n_rerun:
            found["rerun"] = machine() | rerun(folder, n_rerun)
        return found


def rows(found: dict[str, Any]) -> list[list[Any]]:
    """Return the figures as a table: what, figure, to reach."""
    made = []
    if speed := found.get("speed"):
        for road, reach in (("shares", 25), ("batched", 25), ("single", 8)):
            rate = statistics.median(m[road]["per_s"] for m in speed["rounds"])
            made.append([f"{road}: judgments/s, all stored", f"{rate:,.0f}", ""])
            made.append([f"{road}: times the openai client", f"{speed[f'{road}_x']:.1f}", f">= {reach}"])
            made.append([f"{road}: the same per CPU second", f"{speed[f'{road}_x_by_cpu']:.1f}", ""])
        bare = statistics.median(m["openai"]["per_s"] for m in speed["rounds"])
        made.append(["openai client: requests/s, nothing stored", f"{bare:,.0f}", ""])
    if memory := found.get("memory"):
        made += [
            [f"peak memory, {int(n):,} prompts, MB", f"{t['peak_mb']:.0f}", ""] for n, t in memory["sizes"].items()
        ]
        made.append(["growth, MB", f"{memory['growth_mb']:.0f}", "<= 100"])
    if again := found.get("rerun"):
        made.append(["finished run again, s", f"{again['again_s']:.1f}", "<= 5"])
        made.append(["the same, CPU seconds", f"{again['again_cpu_s']:.1f}", ""])
        made.append(["its calls", again["again_calls"], "0"])
        made.append(["--verify, s", f"{again['verify_s']:.1f}", ""])
        made.append(["--verify, faults", again["n_faults"], "0"])
    return made


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.orchestrator", description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of the speed comparison; 0 leaves it out")
    parser.add_argument(
        "--memory", type=int, nargs="*", default=[10_000, 200_000], help="sizes in prompts; none: leave out"
    )
    parser.add_argument(
        "--rerun", type=int, default=10_000, help="prompts of the run that is run again; 0 leaves it out"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(worker(arguments.worker)))
        return 0
    found = measure(arguments.rounds, arguments.memory, arguments.rerun)
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
