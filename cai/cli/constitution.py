"""`cai constitution`: the editor's commands."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "constitution",
        "lint a constitution, or print its schema",
        "cai constitution lint constitutions/harmless.yaml",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    lint = add_command(
        actions,
        "lint",
        "show every problem of constitution files, with file, line and column",
        "cai constitution lint constitutions/*.yaml",
    )
    lint.add_argument("files", nargs="+", metavar="FILE")
    add_json(lint)
    lint.set_defaults(handle=handle_lint)
    schema = add_command(
        actions,
        "schema",
        "print the JSON Schema that editors check against",
        "cai constitution schema > constitution.schema.json",
    )
    schema.set_defaults(handle=handle_schema)


def handle_lint(arguments: argparse.Namespace) -> int:
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


def handle_schema(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from cai.cli.terminal import say_json
    from cai.constitution import json_schema

    say_json(json_schema())
    return 0
