"""`cai run`: a whole run, resumable by the same command."""

from __future__ import annotations

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "run",
        "run a config: generate, judge, train, evaluate, report",
        "cai run configs/quickstart.yaml run.dir=runs/mine run.seed=1",
    )
    parser.add_argument("config", help="the run's YAML file")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--accept-changes", action="store_true", help="go on in a folder whose inputs have changed")
    parser.add_argument(
        "--verify", action="store_true", help="derive a finished run again from what it kept and compare; no calls"
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Run and show what came of it."""
    from cai.cli.load import load_config
    from cai.pipeline.conduct import Conductor
    from cai.pipeline.meter import Meter
    from cai.report import kept_report, write_report

    config, near = load_config(arguments.config, arguments.overrides)
    meter = Meter()
    if arguments.verify:
        return _verify(arguments, config, near, meter)
    conductor = Conductor(config, near=near, meter=meter, accept_changes=arguments.accept_changes)
    place = config.run.dir
    ended = to_its_end(
        conductor,
        meter,
        lambda: kept_report(place) or write_report(place),
        again=_command(arguments),
        quiet=arguments.quiet,
    )
    if ended is None:
        return 130
    result, report = ended
    show(result, meter, report, as_json=arguments.json)
    return int(result.exit_code)


def _verify(arguments: argparse.Namespace, config: Any, near: Any, meter: Any) -> int:
    """Derive the run again, show what was checked, and tell by the exit code whether all of it agrees."""
    from cai.cli.terminal import Progress, say, say_json, table
    from cai.executors import local
    from cai.pipeline.rederive import Rederiving

    rederiving = Rederiving(config, near=near, meter=meter, accept_changes=False)
    with Progress(meter, quiet=arguments.quiet):
        found = local.run(rederiving.rederive())
    if arguments.json:
        say_json(found)
    else:
        say(table([[k, f"{v:,}"] for k, v in found["checked"].items()], head=("checked", "")))
        for fault in found["faults"]:
            say(f"fault: {fault}")
        say(f"\nfaults: {found['n_faults']}")
    return 1 if found["n_faults"] else 0


def to_its_end(
    conductor: Any, meter: Any, report: Callable[[], Any], *, again: str, quiet: bool
) -> tuple[Any, str] | None:
    """Return (result, report) of a run; None where it was interrupted, once `again`, how to go on, is told."""
    import asyncio

    from cai.cli.terminal import Progress
    from cai.executors import local

    with Progress(meter, quiet=quiet):
        try:
            result = local.run(interruptible(conductor.run()))
        except asyncio.CancelledError:
            print(f"cai: interrupted; to go on: {again}", file=sys.stderr)
            return None
        with meter.stage("report", 1):
            return result, str(report())


async def interruptible(work: Any) -> Any:
    """Run `work`; the first Ctrl+C (or SIGTERM) cancels it so that it flushes and stops, the second leaves at once.

    The handlers are the interpreter's, not the loop's: a second Ctrl+C is heard while the loop is held up.
    """
    import asyncio

    task = asyncio.ensure_future(work)
    loop = asyncio.get_running_loop()
    pressed = False

    def on_signal(*_: Any) -> None:
        nonlocal pressed
        if pressed:
            os._exit(130)
        pressed = True
        os.write(2, b"\ncai: stopping; press Ctrl+C again to leave at once\n")
        loop.call_soon_threadsafe(task.cancel)

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return await task
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _command(arguments: argparse.Namespace) -> str:
    accept = ["--accept-changes"] if arguments.accept_changes else []
    return shlex.join(["cai", "run", arguments.config, *arguments.overrides, *accept])


def show(result: Any, meter: Any, report: str, *, as_json: bool) -> None:
    """Show what a run came to: its counts, its notes, its headline and where it lies."""
    from cai.cli.terminal import say, say_json, table

    if as_json:
        say_json(result.as_dict() | {"report": report, "notes": meter.notes})
        return
    counts = result.accounting
    say()
    say(table([[k, v] for k, v in result.prompts.items()], head=("prompts", "")))
    say()
    say(table([[k, v] for k, v in counts.items() if not isinstance(v, dict)], head=("comparisons", "")))
    for reason, n in counts["filtered_by"].items():
        say(f"    filtered: {reason} {n}")
    say()
    say(f"calls: {result.calls['made']} made, {result.calls['reused']} reused{_by_kind(result.by_kind)}")
    for note in meter.notes[meter.n_told :]:
        say(f"note: {note}")
    for line in _headline(result.run):
        say(line)
    say(f"run:    {result.run}")
    say(f"report: {report}")


def _by_kind(by_kind: dict[str, dict[str, int]]) -> str:
    made, reused = by_kind.get("made", {}), by_kind.get("reused", {})
    told = [f"{kind} {made.get(kind, 0)} made, {reused.get(kind, 0)} reused" for kind in sorted(made | reused)]
    return f" ({'; '.join(told)})" if told else ""


def _headline(run: str) -> list[str]:
    from cai.report import headline

    return headline(run)
