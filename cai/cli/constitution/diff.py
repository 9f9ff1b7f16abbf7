"""`cai constitution diff`: what differs between two constitutions."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json

_SIGNS = {"added": "+", "removed": "-", "changed": "~", "renamed": ">"}


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "diff",
        "show what differs between two constitutions, word by word",
        "cai constitution diff runs/mine/constitution.yaml constitutions/harmless.yaml",
    )
    parser.add_argument("old", metavar="OLD")
    parser.add_argument("new", metavar="NEW")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Compare and show; exit 0 whatever differs."""
    from cai import constitution
    from cai.cli.terminal import say, say_json
    from cai.workshop.difference import compare

    found = compare(constitution.load(arguments.old), constitution.load(arguments.new))
    if arguments.json:
        say_json(found.as_dict())
        return 0
    for change in found.changed:
        show_change(change)
    n_same = len(found.principles) - len(found.changed)
    say(f"{len(found.changed)} of {len(found.principles)} principles differ, {n_same} are the same")
    if found.is_silent:
        say("nothing differs that a model or a label could see: a run would ask nothing again")
    return 0


def show_change(change: Any) -> None:
    """Print one principle's change."""
    from cai.cli.terminal import say
    from cai.workshop.difference import cost_of, marked

    name = f"{change.old.id} -> {change.new.id}" if change.kind == "renamed" else change.id
    say(f"{_SIGNS[change.kind]} {name} ({change.kind})")
    for field in change.fields:
        say(f"    {field.name}: {told(field.as_dict())}")
        for example in field.examples:
            say(f"        {' '.join(marked(example).split())}")
        if change.kind in ("changed", "renamed"):
            say(f"        so {cost_of(field.name)}")
    say()


def told(field: dict[str, Any]) -> str:
    """Return one field's change in a line."""
    from cai.workshop.difference import marked

    if field["words"]:
        return marked(field["words"])
    old, new = field["old"], field["new"]
    if field["field"] == "tests":
        return f"{len(old or ())} worked examples before, {len(new or ())} now"
    sides = [_value(side) for side in (old, new) if side is not None]
    if old is None or new is None:
        return sides[0] if sides else "none"
    return " -> ".join(sides)


def _value(value: Any) -> str:
    import json

    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
