"""`cai constitution fmt`: one way to lay a constitution out."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "fmt",
        "lay constitution files out in one way, comments kept",
        "cai constitution fmt constitutions/*.yaml --check",
    )
    parser.add_argument("files", nargs="+", metavar="FILE")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 where a file would change")
    parser.add_argument("--schema", metavar="TARGET", help="also begin each file with the line that tells editors "
                        "(VS Code and others) where the schema is: a path beside the file, or a URL")  # fmt: skip
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Format in place; exit 1 with --check where a file would change."""
    from pathlib import Path

    from cai import constitution
    from cai.cli.terminal import say, say_json
    from cai.manifest import write_atomically
    from cai.workshop.layout import formatted, with_schema_line

    told = []
    for file in arguments.files:
        constitution.load(file)  # every problem is told before anything is written
        before = Path(file).read_text(encoding="utf-8-sig")
        after = formatted(before, file)
        if arguments.schema:
            after = with_schema_line(after, arguments.schema)
        if after != before and not arguments.check:
            write_atomically(Path(file), after)
        told.append({"file": file, "changed": after != before})
    if arguments.json:
        say_json(told)
    else:
        word = "would change" if arguments.check else "changed"
        for each in told:
            say(f"{each['file']}: {word if each['changed'] else 'is laid out already'}")
    return 1 if arguments.check and any(each["changed"] for each in told) else 0
