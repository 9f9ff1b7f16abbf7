"""`cai report`: the run's page, written anew from its files."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "report", "write a run's report.html anew", "cai report runs/quickstart")
    parser.add_argument("run", help="the run's folder")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Collect, write and tell the headline."""
    from cai.cli.terminal import say, say_json
    from cai.report import collect, headline, write_report

    path = write_report(arguments.run)
    if arguments.json:
        say_json(collect(arguments.run))
        return 0
    for line in headline(arguments.run):
        say(line)
    say(f"report: {path}")
    return 0
