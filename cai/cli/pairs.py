"""`cai pairs`: a run's preference pairs as a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "pairs",
        "write a run's preference pairs and their provenance",
        "cai pairs runs/quickstart -o pairs.jsonl",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument(
        "-o", "--out", help="where to write; provenance goes beside it (default: the run's pairs.jsonl)"
    )
    parser.add_argument("--phase", action="append", help="only this phase (may be given several times)")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Settle, filter, write and count."""
    from cai.cli.terminal import say, say_json, table
    from cai.errors import UserError
    from cai.pairs import export, provenance_path, stale_checkpoints
    from cai.store import schema
    from cai.trail import RunView

    with RunView(arguments.run) as run:
        schema.check(run.folder / "store.sqlite")
        unknown = set(arguments.phase or []) - set(run.phases)
        if unknown:
            raise UserError(f"{arguments.run}: no phase {sorted(unknown)}; this run has {run.phases}")
        whole = run.folder / "pairs.jsonl"
        out = Path(arguments.out) if arguments.out else whole
        if arguments.phase and out.resolve() == whole.resolve():
            raise UserError(f"{out} holds the pairs of every phase; with --phase give another file, -o FILE")
        counted = export(run, out, phases=arguments.phase)
        stale = stale_checkpoints(run)
    if arguments.json:
        say_json({"pairs": str(out), "accounting": counted.as_dict(), "stale": stale})
        return 0
    say(table([[k, v] for k, v in counted.as_dict().items() if not isinstance(v, dict)], head=("comparisons", "")))
    say(f"pairs:      {out}")
    say(f"provenance: {provenance_path(out)}")
    for checkpoint in stale:
        say(f"stale: {checkpoint} was trained on rows that have changed since")
    return 0
