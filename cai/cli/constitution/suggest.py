"""`cai constitution suggest`: principles that would explain what people preferred."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json
from cai.cli.files import count


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "suggest",
        "propose principles that explain where people and the judge disagree, with evidence",
        "cai constitution suggest runs/mine --out suggested.yaml",
    )
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run whose overrides differ from its judge's labels")
    parser.add_argument("--pairs", metavar="FILE", help="instead: labelled pairs, in any shape that judge bench reads")
    parser.add_argument("--config", metavar="CONFIG", help="with --pairs: whose judge is asked; else the embedded one")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--most-pairs", type=count, default=100, metavar="N", help="use at most N pairs (100)")
    parser.add_argument("--most", type=count, default=5, metavar="N", help="write at most N principles (5)")
    parser.add_argument("--out", metavar="FILE", help="write the YAML here, where nothing may stand yet; else print it")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Propose, test and write; exit 1 where nothing explains the pairs."""
    import sys

    from cai.cli import files
    from cai.cli.terminal import clean, say, say_json
    from cai.manifest import write_atomically
    from cai.workshop import suggest

    out = files.unused(arguments.out) if arguments.out else None
    found, source = _found(arguments)
    text = suggest.as_yaml(found, source, most=arguments.most)
    if text and out:
        write_atomically(out, text)
    if arguments.json:
        say_json(found.as_dict() | {"yaml": text, "out": arguments.out if text else None})
        return 0 if text else 1
    for candidate in found.candidates:
        print(clean(f"{suggest.evidence(candidate)}: {candidate.text}"), file=sys.stderr)
    print(f"{found.n_proposals} of {found.n_replies} replies proposed a quality", file=sys.stderr)
    if not text:
        say(f"no principle explains these {found.n_pairs} pairs; nothing was written")
        return 1
    say(f"written: {arguments.out}" if arguments.out else text)
    return 0


def _found(arguments: argparse.Namespace) -> tuple[Any, str]:
    """Return the suggestion and what it was made from."""
    from cai.cli.terminal import Progress
    from cai.errors import UserError
    from cai.executors import local
    from cai.pipeline.meter import Meter
    from cai.workshop import suggest
    from cai.workshop.evidence import drawn

    if (arguments.run is None) == (arguments.pairs is None):
        raise UserError("suggest: expected a run's folder or --pairs FILE, and not both")
    meter = Meter()
    pairs, source, config, options, folder = _inputs(arguments)
    chosen = drawn(pairs, arguments.most_pairs, config.run.seed)
    if not chosen:
        raise UserError(
            f"{source}: found no pair that is no tie and whose answers differ; add some"
            if arguments.pairs
            else f"{source}: found no pair on which a person and the judge disagree; override some, or give --pairs"
        )

    async def work() -> Any:
        from cai.pipeline.hearing import hearing

        async with hearing(config, folder, meter=meter, **options) as held:
            return await suggest.suggest(chosen, held)

    with Progress(meter, quiet=arguments.quiet or arguments.json):
        return local.run(work()), source


def _inputs(arguments: argparse.Namespace) -> tuple[Any, str, Any, dict[str, Any], Any]:
    """Return (pairs, their name, config, what the judge is asked with, where its answers are kept)."""
    from pathlib import Path

    from cai.pipeline.hearing import overridden
    from cai.trail import RunView
    from cai.workshop import impact, judge
    from cai.workshop.evidence import disagreements, preferences

    if arguments.pairs:
        path = Path(arguments.pairs)
        config, near = judge.config_for("none", arguments.config, arguments.set)
        return preferences(path), path.name, config, {"near": near}, judge.workbench()
    with RunView(arguments.run) as run:
        options = {"near": run.folder, "templates": run.templates, "fence": impact.fence_of(run), "siblings": True}
        config = overridden(run.config_to_ask, arguments.set)
        return list(disagreements(run)), run.folder.name, config, options, impact.workbench(run)
