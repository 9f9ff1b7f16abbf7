"""`cai train`: train the checkpoints of a run whose rows are new or have changed."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "train", "train a run's checkpoints anew where their rows have changed", "cai train runs/quickstart"
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--phase", help="train this phase even if its rows have not changed")
    parser.add_argument("--show", type=int, metavar="N", help="show N rows as the model reads them, and train nothing")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Set stale checkpoints aside, then go on with the run, which trains what is missing."""
    from cai.cli.terminal import say, say_json
    from cai.pipeline.retrain import retrain, show

    if arguments.show:
        for text in show(arguments.run, arguments.phase, arguments.show):
            say(text)
        return 0
    result = retrain(arguments.run, arguments.phase)
    if arguments.json:
        say_json(result.as_dict())
    else:
        say(f"trained anew: {', '.join(result.retrained) or 'nothing, every checkpoint is up to date'}")
    return int(result.exit_code)
