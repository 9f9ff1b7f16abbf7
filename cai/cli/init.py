"""`cai init`: a folder to start from."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands, "init", "make a folder with a constitution, prompts and a config", "cai init my-project"
    )
    parser.add_argument("folder", help="the folder to make")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Copy the quickstart's files where nothing stands yet."""
    import shutil
    from pathlib import Path

    from cai import shipped
    from cai.cli.terminal import tell
    from cai.errors import UserError
    from cai.templates import NAMES

    folder = Path(arguments.folder)
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty; give a new folder")
    root = shipped.root()
    copies = {
        "configs/quickstart.yaml": "config.yaml",
        "configs/scripted.yaml": "scripted.yaml",
        "constitutions/quickstart.yaml": "constitutions/quickstart.yaml",
        "constitutions/constitution.schema.json": "constitutions/constitution.schema.json",
        "prompts/sets/everyday.jsonl": "prompts/sets/everyday.jsonl",
        "prompts/sets/tempting.jsonl": "prompts/sets/tempting.jsonl",
    }
    copies |= {f"prompts/{name}.jinja": f"prompts/{name}.jinja" for name in NAMES}
    for source, target in copies.items():
        (folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / source, folder / target)
    made = [str(folder / target) for target in copies.values()]
    config = "cai model fetch smollm2-135m-instruct && cai run config.yaml"
    lines = (*(f"made {path}" for path in made), f"\nnext: cd {folder} && cai plan config.yaml --short && {config}")
    tell(arguments.json, {"made": made}, (*lines, "without a model, in seconds: cai run scripted.yaml"))
    return 0
