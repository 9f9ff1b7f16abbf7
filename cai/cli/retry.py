"""`cai retry`: ask again about the prompts of a run that failed."""

from __future__ import annotations

import argparse
import shlex
import sys
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "retry",
        "ask again about the prompts of a run that failed, and about nothing else",
        "cai retry runs/mine --failed\n  cai retry runs/mine engine.retries=20 --failed",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override what changes no answer: engine, budget")
    parser.add_argument("--failed", action="store_true", help="those that failed: the default, and so far all there is")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Ask again, export and report anew, and show what came of it."""
    import asyncio

    from cai.cli.run import interruptible, show
    from cai.cli.terminal import Progress
    from cai.executors import local
    from cai.pipeline.meter import Meter
    from cai.pipeline.retry import retry
    from cai.report import write_report

    meter = Meter()
    conductor = retry(arguments.run, arguments.overrides, meter)
    with Progress(meter, quiet=arguments.quiet):
        try:
            result = local.run(interruptible(conductor.run()))
        except asyncio.CancelledError:
            again = shlex.join(["cai", "retry", arguments.run, *arguments.overrides, "--failed"])
            print(f"cai: interrupted; to go on: {again}", file=sys.stderr)
            return 130
        with meter.stage("report", 1):
            report = write_report(arguments.run)
    show(result, meter, str(report), as_json=arguments.json)
    return int(result.exit_code)
