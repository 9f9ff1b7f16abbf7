"""`cai constitution conflicts`: how the principles of a run stand to each other."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "conflicts",
        "show which principles of a run disagree, repeat each other, never decide or are always overruled",
        "cai constitution conflicts runs/mine",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("--phase", help="only this phase")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Count and show."""
    from cai.cli.terminal import say, say_json
    from cai.errors import UserError
    from cai.evaluate.conflicts import Conflicts
    from cai.trail import RunView

    with RunView(arguments.run) as run:
        if arguments.phase and arguments.phase not in run.phases:
            expected = ", ".join(run.phases)
            raise UserError(f"{run.folder}: found no phase '{arguments.phase}', expected one of {expected}")
        conflicts, n = Conflicts(run.config.judge.tie_margin), 0
        for phase in [arguments.phase] if arguments.phase else run.phases:
            for end in run.ended(phase):
                conflicts.add(end)
                n += 1
        if not n:
            why = "found no comparison, so nothing was judged; give a run that compares answers"
            raise UserError(f"{run.folder}: {why}")
        found = conflicts.as_dict([p.id for p in run.constitution.principles]) | {"comparisons": n}
    if arguments.json:
        say_json(found)
        return 0
    say(f"{n} comparisons")
    _show(found)
    return 0


def _show(found: dict[str, Any]) -> None:
    from cai.cli.terminal import say, table
    from cai.report.words import NONE, percent

    ids = [row["principle"] for row in found["principles"]]
    rows = [
        (i + 1, row["principle"], f"{row['weight']:g}", row["due"], row["named"],
         percent(row["tips"]["value"]) if row["tips"] else NONE)
        for i, row in enumerate(found["principles"])
    ]  # fmt: skip
    say(table(rows, head=("", "principle", "weight", "due", "names a side", "tips the label")))
    say()
    say("share of common votes on which two principles disagree, in percent")
    cells = [
        (
            i + 1,
            *("" if cell is None else NONE if cell["share"] is None else round(100 * cell["share"]) for cell in line),
        )
        for i, line in enumerate(found["matrix"])
    ]
    say(table(cells, head=("", *(str(i + 1) for i in range(len(ids))))))
    say()
    for line in sentences(found):
        say(line)


def sentences(found: dict[str, Any]) -> list[str]:
    """Return the findings, one line each."""
    from cai.report.words import percent

    told = [f"never decides: {id_}" for id_ in found["silent"]]
    for name, verb in (("redundant", "vote nearly alike"), ("opposed", "mostly disagree")):
        for pair in found[name]:
            one, other = pair["principles"]
            told.append(f"{verb}: {one} and {other}, {percent(pair['share'])} against each other of {pair['both']}")
    for rule in found["overruled"]:
        told.append(f"always overruled: {rule['principle']} by {rule['by']}, {percent(rule['share'])} of {rule['n']}")
    return told or ["no conflict, repetition or dead principle is certain at this number of comparisons"]
