"""`cai constitution schema`: what editors check constitution files against."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "schema",
        "print the JSON Schema that editors check against",
        "cai constitution schema > constitution.schema.json",
    )
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Print the schema."""
    from cai.cli.terminal import say_json
    from cai.constitution import json_schema

    say_json(json_schema())
    return 0
