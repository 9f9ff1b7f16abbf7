"""`cai constitution test`: the worked examples, put to the judge."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "test",
        "put a constitution's worked examples to the judge, in both orders",
        "cai constitution test constitutions/harmless.yaml --config config.yaml --junit tests.xml",
    )
    parser.add_argument("file", metavar="FILE", help="the constitution")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--config", metavar="CONFIG", help="whose judge is asked; without it the embedded model")
    parser.add_argument("--principle", action="append", metavar="ID", help="only this principle; may be repeated")
    parser.add_argument("--at-least", type=_share, default=1.0, metavar="SHARE",
                        help="exit 0 where this share of the examples passes (default: 1, all of them)")  # fmt: skip
    parser.add_argument("--junit", metavar="FILE", help="also write JUnit XML, for CI systems")
    parser.add_argument("--fresh", action="store_true", help="ask again what was answered before")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"found '{text}', expected a share between 0 and 1")
    return share


def handle(arguments: argparse.Namespace) -> int:
    """Test and show; exit 0 where enough passes, 1 where not, 2 for a file that cannot be used."""
    from cai import constitution
    from cai.cli import files
    from cai.cli.terminal import say, say_json
    from cai.manifest import write_atomically
    from cai.workshop.testing import junit

    text, xml = constitution.load(arguments.file), files.page(arguments.junit) if arguments.junit else None
    report, asked = _report(text, arguments)
    if xml:
        write_atomically(xml, junit(report))
    figures = report.as_dict() | {"asked": asked, "at_least": arguments.at_least}
    if arguments.json:
        say_json(figures)
    else:
        _show(figures)
        say(f"judge: {asked['judge']}; {asked['made']} calls made, {asked['reused']} reused, {asked['seconds']:.1f} s")
    accuracy = figures["whole"]["accuracy"]
    return 0 if accuracy is not None and accuracy["value"] >= arguments.at_least else 1


def _report(text: Any, arguments: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Return the report, and what asking for it has taken."""
    import tempfile
    from pathlib import Path

    from cai.cli.terminal import Progress
    from cai.errors import UserError
    from cai.executors import local
    from cai.pipeline.hearing import hearing
    from cai.pipeline.meter import Meter
    from cai.workshop import judge, testing

    unknown = set(arguments.principle or ()) - text.by_id.keys()
    if unknown:
        known = ", ".join(text.by_id)
        raise UserError(f"{arguments.file}: found no principle '{sorted(unknown)[0]}', expected one of {known}")
    principles = [p for p in text.principles if not arguments.principle or p.id in arguments.principle]
    meter = Meter()
    if not testing.needs_model(principles):
        report = local.run(testing.run(text, principles, None))
        return report, {"judge": "code", "made": 0, "reused": 0, "seconds": 0.0}
    config, near = judge.config_for(arguments.file, arguments.config, arguments.overrides)

    async def ask(folder: Path) -> tuple[Any, str]:
        async with hearing(config, folder, near=near, meter=meter) as held:
            return await testing.run(text, principles, held), held.bench(principles).judges

    with tempfile.TemporaryDirectory() as fresh, Progress(meter, quiet=arguments.quiet or arguments.json):
        report, identity = local.run(ask(Path(fresh) / "fresh" if arguments.fresh else judge.workbench()))
    # A server starts inside the first question; its start is told apart from the asking.
    seconds = sum(s.seconds if s.name == "worked examples" else -s.seconds for s in meter.stages)
    tally = meter.tally
    return report, {"judge": identity, "made": tally.made, "reused": tally.reused, "seconds": round(seconds, 2)}


def _show(figures: dict[str, Any]) -> None:
    from cai.cli.terminal import say, table

    rows = [*figures["principles"], figures["whole"]]
    head = ("principle", "tests", "passed", "accuracy", "95% interval", "swap consistency", "abstained", "unusable")
    say(table([_row(row) for row in rows], head=head))
    untested = [row["principle"] for row in figures["principles"] if not row["tests"]]
    if untested:
        say(f"without worked examples: {', '.join(untested)}")
    for failure in figures["failures"]:
        p = "" if failure["p"] is None else f" (p {failure['p']:.2f})"
        say(f"{failure['place']}: {failure['principle']}: expected {failure['expect']}, got {failure['got']}{p}")
        words = " ".join(failure["words"].split())
        if words:
            say(f"    {words[:300]}")


def _row(row: dict[str, Any]) -> tuple[Any, ...]:
    from cai.report.words import NONE, percent

    accuracy, same = row["accuracy"], row["swap_consistency"]
    interval = f"{percent(accuracy['low'])} to {percent(accuracy['high'])}" if accuracy else NONE
    shown = "code" if row["by_code"] else percent(same["value"]) if same else NONE
    value = percent(accuracy["value"]) if accuracy else NONE
    return (row["principle"], row["tests"], row["passed"], value, interval, shown, row["abstained"], row["unusable"])
