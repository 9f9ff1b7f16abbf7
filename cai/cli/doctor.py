"""`cai doctor`: what this machine has, and whether its versions are safe and fit together."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "doctor", "check this machine: versions, engine, GPU, disk", "cai doctor")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Check and show; exit 1 where something must be mended."""
    from cai.cli.terminal import say, say_json, table
    from cai.doctor import examine

    findings = examine()
    if arguments.json:
        say_json([vars(f) for f in findings])
    else:
        say(table([[f.state, f.what, f.found, f.advice] for f in findings], head=("", "what", "found", "what to do")))
    return 1 if any(f.state == "bad" for f in findings) else 0
