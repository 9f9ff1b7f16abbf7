"""`cai constitution`: the editor's commands."""

from __future__ import annotations

import importlib
from typing import Any

from cai.cli import add_command

_ACTIONS = ("lint", "test", "show", "fmt", "diff", "impact", "conflicts", "suggest", "interchange", "schema")
"""One file each; they stand in the order in which an editor needs them."""


def add(commands: Any) -> None:
    """Add the command with all its actions."""
    parser = add_command(
        commands,
        "constitution",
        "lint, test, diff, preview and exchange constitutions",
        "cai constitution test constitutions/harmless.yaml --config config.yaml",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    for name in _ACTIONS:
        importlib.import_module(f"cai.cli.constitution.{name}").add(actions)
