"""The same job through other tools, each in an environment of its own, on the same model and kind of server.

    python -m bench.peers [--json] [--prompts 64] [--rounds 3] [--judging same]
                          [--distilabel PYTHON] [--designer PYTHON] [--keep FILE]

The job: answer, critique, revise, then 16 principles in both orders. A peer whose environment is not there is skipped.
To make them:

    python3.11 -m venv bench/.peers/distilabel
    bench/.peers/distilabel/bin/pip install 'distilabel[openai]==1.5.3' requests
    python3.11 -m venv bench/.peers/designer
    bench/.peers/designer/bin/pip install data-designer==0.9.6

Peers judge with one chat completion a principle and order. `--judging` says what they are asked: `same`, our words with
the principle before the pair, where their guides put a rubric; `last`, our words with the principle after it; `short`,
as few words as will do, the principle first, without the fences and instructions that keep an answer from judging
itself.

Every arm gets a server started afresh; what is timed is the job, not the server's start and not the imports. A round
takes long (half an hour and more on two cores): with `--keep` each is written down as it ends, and rounds of the same
job that the file holds already count with it.
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
from cai import canon, shipped
from cai.config import JudgeSection
from cai.manifest import write_atomically
from cai.records import Comparison, Message, Prompt
from cai.stages.judge import Bench, Case
from cai.templates import Fence, Templates

_HERE = Path(__file__).resolve().parent
PEERS = {"distilabel": "distilabel_job.py", "designer": "designer_job.py"}
PLACES = {name: _HERE / ".peers" / name / "bin" / "python" for name in PEERS}
KEPT = _HERE / ".peers" / "rounds.json"
_SHORT = "Conversation:\n{{ prompt }}\n\nAnswer A:\n{{ a }}\n\nAnswer B:\n{{ b }}"
JUDGING = ("same", "last", "short")


def _question(judging: str) -> str:
    """Return what peers are asked for a judgment, as a template."""
    if judging == "short":
        return "{{ principle }}\n\n" + _SHORT + "\n\nAnswer with one letter, A or B."
    prompt = Prompt(messages=(Message(role="user", content="{{ prompt }}"),))
    compared = Comparison(phase="bench", prompt_id=prompt.id, a_id="a", b_id="b", source="samples")
    bench = Bench((), Templates(shipped.find("prompts")), JudgeSection(), Fence(b"bench"), "judge", 0)
    pair = bench.pair_turns(Case(compared, prompt, "{{ a }}", "{{ b }}"), "ab")[0].text
    parts = ["Principle: {{ principle }}", pair] if judging == "same" else [pair, "Principle: {{ principle }}"]
    return "\n\n".join([*parts, "Answer with one letter, A or B."])


def spec(url: str, model: str, n_prompts: int, judging: str = "same") -> dict[str, Any]:
    """Return the job as the scripts read it, for the server at `url` that calls its model so."""
    principles = workload.principles(workload.PRINCIPLES)
    rows = [
        {
            "prompt": row["prompt"],
            "critique_request": principles[i % workload.PRINCIPLES]["critique"],
            "revision_request": principles[i % workload.PRINCIPLES]["revision"],
        }
        for i, row in enumerate(itertools.islice(workload.prompts(), n_prompts))
    ]
    answered = "Question:\n{{ prompt }}\n\nAnswer:\n{{ answer }}"
    return {
        "url": url,
        "model": model,
        "rows": rows,
        "batch": 50,
        "principles": principles,
        "answer_tokens": 64,
        "critique_tokens": 40,
        "answer": "{{ prompt }}",
        "critique": answered + "\n\nCritique request: {{ critique_request }}",
        "revise": answered + "\n\nCritique:\n{{ critique }}\n\nRevision request: {{ revision_request }}",
        "judge": _question(judging),
    }


async def _peer(python: Path, name: str, folder: Path, n_prompts: int, judging: str) -> dict[str, Any]:
    async with started(folder, name) as server:
        path = folder / f"{name}.json"
        path.write_text(json.dumps(spec(server.url, server.model_name, n_prompts, judging)), encoding="utf-8")
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
    if found["judgments"] != (asked := 2 * workload.PRINCIPLES * n_prompts):  # a peer goes on without what it failed at
        raise SystemExit(
            f"{name} made {found['judgments']} of {asked} judgments:\n{(done.stdout + done.stderr)[-2000:]}"
        )
    return found


async def _round(
    folder: Path, n_prompts: int, judging: str, present: dict[str, Path], *, with_floor: bool
) -> dict[str, float]:
    """Return the seconds of every arm."""
    took = {"cai": await pipeline.walk(folder, "walk", n_prompts)}
    if with_floor:
        took["floor"] = await pipeline.floor(folder, "floor")
    for peer, python in present.items():
        took[peer] = (await _peer(python, peer, folder, n_prompts, judging))["seconds"]
    return took


async def measure(
    n_prompts: int, rounds: int, pythons: dict[str, Path], keep: Path | None = None, judging: str = "same"
) -> dict[str, Any]:
    """Return the seconds of every arm, round by round, and how many times slower each peer is than ours.

    The floor, the very requests of ours from a bare client, is measured in the first round.
    """
    present = {name: python for name, python in pythons.items() if python.exists()}
    skipped = [f"{name}: skipped, no Python at {python}" for name, python in pythons.items() if name not in present]
    job = canon.content_id("peers", spec("", "", n_prompts, judging))
    before = {"job": job, "rounds": []} | (kept(keep) if keep else {})
    if before["job"] != job:
        raise SystemExit(f"{keep}: holds rounds of another job ({before['job']}, not {job}); name another file")
    found: list[dict[str, float]] = before["rounds"]
    told = {"bench": "peers", **machine(), "prompts": n_prompts, "judging": judging, "job": job, "skipped": skipped}
    for _ in range(rounds if present else 0):
        with tempfile.TemporaryDirectory(prefix="bench-") as name:
            found.append(await _round(Path(name), n_prompts, judging, present, with_floor=not found))
        if keep:
            write_atomically(keep, json.dumps(told | _ratios(found), indent=1) + "\n")
    return told | _ratios(found)


def _ratios(found: list[dict[str, float]]) -> dict[str, Any]:
    ratios = {peer: [took[peer] / took["cai"] for took in found if peer in took] for peer in PEERS}
    return {"rounds": found, "times": {peer: statistics.median(each) for peer, each in ratios.items() if each}}


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
    for name, place in PLACES.items():
        parser.add_argument(f"--{name}", type=Path, default=place, help=f"the Python that has {name}")
    parser.add_argument("--judging", choices=JUDGING, default="same", help="what the peers are asked, see above")
    parser.add_argument("--keep", type=Path, help="JSON that each round is added to as it ends")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    pythons = {name: getattr(arguments, name) for name in PEERS}
    found = asyncio.run(measure(arguments.prompts, arguments.rounds, pythons, arguments.keep, arguments.judging))
    return show(found, rows(found), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
