"""The same job through other tools, each in an environment of its own, on the same model and kind of server.

    python -m bench.peers [--json] [--prompts 64] [--rounds 3]
                          [--distilabel PYTHON] [--designer PYTHON] [--keep FILE]

The job: answer, critique, revise, then 16 principles in both orders. A peer whose environment is not there is skipped.
To make them:

    python3.11 -m venv bench/.peers/distilabel
    bench/.peers/distilabel/bin/pip install 'distilabel[openai]==1.5.3' requests
    python3.11 -m venv bench/.peers/designer
    bench/.peers/designer/bin/pip install data-designer==0.9.6

Every arm gets a server started afresh; what is timed is the job, not the server's start and not the imports. A round
takes long (about 40 minutes on two cores): with `--keep` each is written down as it ends, and rounds of the same job
that the file holds already count with it.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench import pipeline, workload
from bench.serving import started
from bench.show import kept, machine, show
from cai.manifest import write_atomically

_HERE = Path(__file__).resolve().parent
PEERS = {"distilabel": "distilabel_job.py", "designer": "designer_job.py"}
_PRINCIPLES = 16
_PAIR = "Conversation:\n{{ prompt }}\n\nAnswer A:\n{{ a }}\n\nAnswer B:\n{{ b }}"


def spec(url: str, model: str, n_prompts: int) -> dict[str, Any]:
    """Return the job as the scripts read it, for the server at `url` that calls its model so."""
    principles = workload.principles(_PRINCIPLES)
    rows = [
        {
            "prompt": row["prompt"],
            "critique_request": principles[i % _PRINCIPLES]["critique"],
            "revision_request": principles[i % _PRINCIPLES]["revision"],
        }
        for i, row in enumerate(itertools.islice(workload.prompts(), n_prompts))
    ]
    answered = "Question:\n{{ prompt }}\n\nAnswer:\n{{ answer }}"
    return {
        "url": url,
        "model": model,
        "rows": rows,
        "batch": min(50, n_prompts),
        "principles": principles,
        "answer_tokens": 64,
        "critique_tokens": 40,
        "answer": "{{ prompt }}",
        "critique": answered + "\n\nCritique request: {{ critique_request }}",
        "revise": answered + "\n\nCritique:\n{{ critique }}\n\nRevision request: {{ revision_request }}",
        "judge": "{{ principle }}\n\n" + _PAIR + "\n\nAnswer with one letter, A or B.",
    }


async def _peer(python: Path, name: str, folder: Path, n_prompts: int) -> dict[str, Any]:
    async with started(folder, name) as server:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec(server.url, server.model_name, n_prompts)), encoding="utf-8")
        environment = os.environ | {"NEMO_TELEMETRY_ENABLED": "false", "HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
        environment.pop("PYTHONPATH", None)
        done = await asyncio.to_thread(
            subprocess.run,
            [str(python), str(_HERE / "jobs" / PEERS[name]), str(path)],
            capture_output=True,
            text=True,
            env=environment,
            cwd=folder,
        )
    if done.returncode:
        raise SystemExit(f"{name} failed:\n{(done.stdout + done.stderr)[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    if found["judgments"] != (asked := 2 * _PRINCIPLES * n_prompts):  # a peer goes on without what it failed at
        raise SystemExit(
            f"{name} made {found['judgments']} of {asked} judgments:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return found


async def _round(folder: Path, n_prompts: int, present: dict[str, Path], *, with_floor: bool) -> dict[str, float]:
    """Return the seconds of every arm."""
    took = {"cai": await pipeline.walk(folder, "walk", n_prompts)}
    if with_floor:
        took["floor"] = await pipeline.floor(folder, "floor")
    for peer, python in present.items():
        took[peer] = (await _peer(python, peer, folder, n_prompts))["seconds"]
    return took


async def measure(n_prompts: int, rounds: int, pythons: dict[str, Path], keep: Path | None = None) -> dict[str, Any]:
    """Return the seconds of every arm, round by round, and how many times slower each peer is than ours.

    The floor, the very requests of ours from a bare client, is measured in the first round.
    """
    present = {name: python for name, python in pythons.items() if python.exists()}
    skipped = [f"{name}: skipped, no Python at {python}" for name, python in pythons.items() if name not in present]
    before = {"prompts": n_prompts, "rounds": []} | (kept(keep) if keep else {})
    if before["prompts"] != n_prompts:
        raise SystemExit(f"{keep}: holds rounds of {before['prompts']} prompts, not of {n_prompts}; name another file")
    found: list[dict[str, float]] = before["rounds"]
    for _ in range(rounds if present else 0):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            found.append(await _round(Path(name), n_prompts, present, with_floor=not found))
        if keep:
            write_atomically(keep, json.dumps(_told(n_prompts, found, skipped), indent=1) + "\n")
    return _told(n_prompts, found, skipped)


def _told(n_prompts: int, found: list[dict[str, float]], skipped: list[str]) -> dict[str, Any]:
    ratios = {peer: [took[peer] / took["cai"] for took in found if peer in took] for peer in PEERS}
    times = {peer: statistics.median(each) for peer, each in ratios.items() if each}
    return {"bench": "peers", **machine(), "prompts": n_prompts, "rounds": found, "times": times, "skipped": skipped}


def rows(found: dict[str, Any]) -> list[list[Any]]:
    """Return the figures as a table."""
    made = []
    for arm in found["rounds"][0] if found["rounds"] else ():
        seconds = [took[arm] for took in found["rounds"] if arm in took]
        made.append([f"{arm}, s, median of {len(seconds)}", f"{statistics.median(seconds):.1f}", ""])
    made += [[f"{peer}: times slower than cai", f"{times:.1f}", ">= 2.0"] for peer, times in found["times"].items()]
    return made + [[line, "", ""] for line in found["skipped"]]


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.peers", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=64, help="prompts of the job")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the median counts")
    for name in PEERS:
        place = _HERE / ".peers" / name / "bin" / "python"
        parser.add_argument(f"--{name}", type=Path, default=place, help=f"the Python that has {name}")
    parser.add_argument("--keep", type=Path, help="JSON that each round is added to as it ends")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    pythons = {name: getattr(arguments, name) for name in PEERS}
    found = asyncio.run(measure(arguments.prompts, arguments.rounds, pythons, arguments.keep))
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
