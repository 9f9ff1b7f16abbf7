"""`cai constitution impact`: what an edit would change in a run, before it is paid for."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from itertools import zip_longest
from typing import Any

from cai.cli import add_command, add_json
from cai.cli.files import count
from cai.cli.terminal import clean

_MOST_LINES = 8


def add(actions: Any) -> None:
    """Add the action."""
    parser = add_command(
        actions,
        "impact",
        "judge a sample of a run again under an edited constitution, and show what flips",
        "cai constitution impact runs/mine/constitution.yaml edited.yaml --run runs/mine --html impact.html",
    )
    parser.add_argument("old", metavar="OLD", help="the constitution of the run")
    parser.add_argument("new", metavar="NEW", help="the edited one")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the run's config")
    parser.add_argument("--run", required=True, help="the run's folder; it is only read")
    parser.add_argument("--sample", type=count, default=None, metavar="N", help="comparisons judged again (200)")
    parser.add_argument("--html", metavar="FILE", help="also write one self-contained page")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Preview and show; exit 0 whatever flips."""
    from cai.cli import files
    from cai.cli.terminal import say, say_json
    from cai.manifest import write_atomically
    from cai.report.page import page_of
    from cai.workshop import words

    page = files.page(arguments.html) if arguments.html else None
    data = _measured(arguments)
    data |= {"sentence": words.sentence(data), "lines": list(words.lines(data))}
    if page:
        write_atomically(page, page_of("impact.html.jinja", data))
    if arguments.json:
        say_json(data)
        return 0
    _show(data)
    if arguments.html:
        say(f"page: {arguments.html}")
    return 0


def _measured(arguments: argparse.Namespace) -> dict[str, Any]:
    from cai import constitution
    from cai.cli.terminal import Progress
    from cai.executors import local
    from cai.pipeline.hearing import hearing, overridden
    from cai.pipeline.meter import Meter
    from cai.trail import RunView
    from cai.workshop import impact

    meter = Meter()
    old, new = constitution.load(arguments.old), constitution.load(arguments.new)

    async def work() -> Any:
        preview = impact.prepare(old, new, run, size=arguments.sample or impact.DEFAULT_SAMPLE)
        if not impact.needs_model(preview):
            return preview, await impact.redo(preview, None, meter)
        config = overridden(run.config_to_ask, arguments.overrides)
        folder, fence = impact.workbench(run), impact.fence_of(run)
        given = {"near": run.folder, "templates": run.templates, "fence": fence}
        async with hearing(config, folder, meter=meter, siblings=True, **given) as held:
            return preview, await impact.redo(preview, held, meter)

    with RunView(arguments.run) as run:
        with Progress(meter, quiet=arguments.quiet or arguments.json):
            preview, redone = local.run(work())
        return impact.measure(preview, redone, _asked(meter))


def _asked(meter: Any) -> dict[str, Any]:
    """Return what asking the sample took; starting a server is left out."""
    tally = meter.tally
    worked = sum(s.seconds if s.name == "judge the sample" else -s.seconds for s in meter.stages)
    return {
        "made": tally.made,
        "reused": tally.reused,
        "written": tally.by_kind.get("generate", 0),
        "tokens": tally.prompt_tokens + tally.completion_tokens,
        "seconds": round(max(worked, 0.0), 3),
    }


def _show(data: dict[str, Any]) -> None:
    from cai.cli.constitution.diff import told
    from cai.cli.terminal import say, table
    from cai.workshop.words import share, shift

    say(data["sentence"])
    for line in data["lines"]:
        say(line)
    for change in data["difference"]["changes"]:
        say()
        say(f"{change['new'] or change['old']} ({change['kind']})")
        for field in change["fields"]:
            say(f"    {field['field']}: {told(field)}")
    if data["principles"]:
        rows = [
            (p["new"] or p["old"], p["n"], share(p["flips"], 1), share(p["moves"], 1), shift(p["mean_shift"]))
            for p in data["principles"]
        ]
        say()
        say(table(rows, head=("principle", "asked on", "flips (95%)", "moves (95%)", "mean shift")))
    if data["sample"]:
        say()
        rows = [(t["old"], t["new"], t["n"]) for t in data["labels"]["table"]]
        say(table(rows, head=("label now", "under the edit", "comparisons")))
    for example in data["examples"][:3]:
        _show_example(example)


def _show_example(example: dict[str, Any]) -> None:
    from cai.cli.terminal import say

    old, new = example["label"]["old"]["label"], example["label"]["new"]["label"]
    say()
    say(f"label {old} -> {new}, row {example['row']}: {_line(example['messages'][-1]['content'])}")
    width = max(24, (shutil.get_terminal_size().columns - 8) // 2)
    for one, other in zip_longest(*(_column(arm, example[arm], width) for arm in "ab"), fillvalue=""):
        say(f"    {one.ljust(width)}  {other}".rstrip())
    for vote in example["votes"]:
        say(f"    {vote['principle']}: {vote['old']} -> {vote['new']}")


def _column(arm: str, text: str, width: int) -> list[str]:
    """Return an answer as the lines of a column; what would take more than a few is left to the page."""
    lines = textwrap.wrap(clean(" ".join(text.split())), width, max_lines=_MOST_LINES, placeholder=" ...")
    return [f"answer {arm}", *lines]


def _line(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 160 else flat[:157] + "..."
