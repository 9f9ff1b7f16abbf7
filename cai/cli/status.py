"""`cai status`: how far a run is."""

from __future__ import annotations

import argparse
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
    from cai.cli.terminal import say, say_json, table
    from cai.trail import RunView, progress

    with RunView(arguments.run) as run:
        state = progress(run)
    if arguments.json:
        say_json(state)
        return 0
    say(f"{state['run']}: {state['state']}")
    rows = [[w["phase"], w["done"], w["failed"], w["due"]] for w in state["walks"]]
    say(table(rows, head=("phase", "done", "failed", "prompts")))
    for failure in state["failures"]:
        say(f"failed in {failure['phase']}: {failure['prompt_id']}: {failure['reason']}")
    say(f"calls kept: {state['calls']}, decisions in the ledger: {state['ledger']}")
    return 0
