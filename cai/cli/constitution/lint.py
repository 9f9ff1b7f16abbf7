"""`cai constitution lint`: every problem, with file, line and column."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "lint",
        "show every problem of constitution files, with file, line and column",
        "cai constitution lint constitutions/*.yaml",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Show problems; exit 2 where there is an error, 0 where there are at most warnings."""
    from cai.cli.terminal import say, say_json
    from cai.constitution import lint

    problems = [problem for file in arguments.files for problem in lint(file)]
    if arguments.json:
        say_json([p.as_dict() for p in problems])
    else:
        for problem in problems:
            say(str(problem))
        if not problems:
            say(f"{len(arguments.files)} file(s): no problems")
    return 2 if any(p.severity == "error" for p in problems) else 0
