"""`cai data`: training sets from several sources, cleaned and mixed."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "data", "make training sets from several sources", "cai data build configs/train/data.yaml"
    )
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    build = add_command(
        parts,
        "build",
        "split, clean and mix what a data file names",
        "cai data build configs/train/data.yaml rows=2000",
    )
    build.add_argument("file", help="the data file (YAML)")
    build.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the data file")
    add_json(build)
    build.set_defaults(handle=handle_build)


def handle_build(arguments: argparse.Namespace) -> int:
    """Build the sets and show where every row went."""
    from cai import shipped, yamlfile
    from cai.cli.terminal import say, say_json, table
    from cai.train.files import DataFile
    from cai.train.mix import ENDS, build

    path = shipped.find(arguments.file)
    file = yamlfile.load(path, DataFile, overrides=list(arguments.overrides)).value
    built = build(file, path.resolve().parent)
    if arguments.json:
        say_json(built.as_dict())
        return 0
    say(table([[name, *row.values()] for name, row in built.counts.items()], head=("source", "read", *ENDS)))
    for name, why in built.reasons.items():
        for reason, n in why.items():
            say(f"{name}: {n} {reason}")
    for kind, entry in built.sets.items():
        say(
            f"{kind}: {entry['train']['rows']} rows to train on ({entry['train']['id']}), "
            f"{entry['held_out']['rows']} held out, in {built.out}"
        )
    return 0
