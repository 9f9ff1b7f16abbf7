"""`cai recover`: save what can be read of a damaged store."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "recover",
        "save what can be read of a run's damaged store; the damaged one is kept beside it",
        "cai recover runs/mine",
    )
    parser.add_argument("run", help="the run's folder")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Recover and tell; exit 3 where something is lost that only a copy could bring back or the run asks for again."""
    from cai.cli.terminal import say, say_json, table
    from cai.store.salvage import recover

    told = recover(Path(arguments.run))
    n_lost = sum(told["lost"].values())
    if arguments.json:
        say_json(told)
        return 3 if n_lost else 0
    say(table([[t, n, told["lost"][t]] for t, n in told["kept"].items()], head=("rows", "kept", "lost")))
    if told["damaged"] is None:
        say(f"{told['run']}: the store is sound; nothing was changed")
    else:
        say(f"the damaged store is kept in {told['damaged']}; give the run's command again to go on: only lost calls")
        say("are made anew. Reviews and overrides that are lost cannot be: see `cai audit verify`")
    return 3 if n_lost else 0
