"""`cai constitution show`: a constitution as a readable page."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "show",
        "show a constitution as a page to read",
        "cai constitution show constitutions/harmless.yaml --html harmless.html",
    )
    parser.add_argument("file", metavar="FILE")
    parser.add_argument("--html", metavar="FILE", help="write one self-contained page instead")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Show it."""
    from cai import constitution
    from cai.cli import files
    from cai.cli.terminal import say, say_json
    from cai.manifest import write_atomically
    from cai.report.page import page_of
    from cai.workshop.reading import describe, lines

    data = describe(constitution.load(arguments.file), arguments.file)
    if arguments.html:
        write_atomically(files.page(arguments.html), page_of("constitution.html.jinja", data))
    if arguments.json:
        say_json(data)
    elif arguments.html:
        say(f"page: {arguments.html}")
    else:
        for line in lines(data):
            say(line)
    return 0
