"""`cai model`: models that come from a package."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(commands, "model", "fetch the embedded default model", "cai model fetch smollm2-135m-instruct")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    fetch = add_command(
        actions, "fetch", "fetch, check and convert an embedded model, once", "cai model fetch smollm2-135m-instruct"
    )
    fetch.add_argument("name", help="the model's name")
    fetch.add_argument("--verify", action="store_true", help="hash every file of a model that is there already")
    add_json(fetch)
    fetch.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Fetch and say where it is."""
    import sys

    from cai.cli.terminal import clean, tell
    from cai.model.fetch import fetch

    def say(line: str) -> None:
        print(clean(line), file=sys.stderr, flush=True)

    folder = str(fetch(arguments.name, verify=arguments.verify, say=say))
    tell(arguments.json, {"model": arguments.name, "folder": folder}, (folder,))
    return 0
