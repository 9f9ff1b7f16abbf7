"""`cai status`: how far a run is."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "status", "show how far a run is", "cai status runs/quickstart")
    parser.add_argument("run", help="the run's folder")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Show a run's progress from its files alone; the run may be at work meanwhile."""
    from cai.cli.terminal import tell
    from cai.manifest import is_locked
    from cai.trail import RunView, progress

    with RunView(arguments.run) as run:
        state = progress(run) | {"at_work": is_locked(run.folder / "run.lock"), "trainings": _trainings(run.folder)}
    tell(arguments.json, state, _lines(state))
    return 0


def _trainings(folder: Path) -> list[dict[str, Any]]:
    """Return how far each training is that has begun; those that were set aside are left out."""
    from cai.report.collect import read_curve

    found = []
    for path in sorted(folder.glob("checkpoints/*/curve.jsonl")):
        rows = read_curve(path)
        if rows and "." not in path.parent.name:
            step, steps = (int(rows[-1].get(name, 0)) for name in ("step", "steps"))
            ended = (path.parent / "checkpoint.json").exists()
            found.append({"phase": path.parent.name, "step": step, "steps": steps, "ended": ended})
    return found


def _lines(state: dict[str, Any]) -> Iterator[str]:
    from cai.cli.terminal import table

    yield f"{state['run']}: {state['state']}{', at work' if state['at_work'] else ''}"
    rows = [[w["phase"], w["done"], w["failed"], w["due"]] for w in state["walks"]]
    yield table(rows, head=("phase", "done", "failed", "prompts"))
    for training in state["trainings"]:
        how_far = "trained" if training["ended"] else "in training"
        yield f"{training['phase']}: {how_far}, step {training['step']} of {training['steps']}"
    for failure in state["failures"]:
        yield f"failed in {failure['phase']}: {failure['prompt_id']}: {failure['reason']}"
    yield f"calls kept: {state['calls']}, decisions in the ledger: {state['ledger']}"
