"""`cai retry`: ask again about the prompts of a run that failed or that its server left without judgments."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "retry",
        "ask again about the prompts of a run that failed, and for judgments that its server left invalid",
        "cai retry runs/mine --failed\n  cai retry runs/mine engine.max_model_len=8192 --failed",
    )
    parser.add_argument("run", help="the run's folder")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override what changes no answer: engine, budget")
    parser.add_argument("--failed", action="store_true", help="those that failed: the default, and so far all there is")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Ask again, export and report anew, and show what came of it."""
    from cai.cli.run import show, to_its_end
    from cai.pipeline.meter import Meter
    from cai.pipeline.retry import retry
    from cai.report import write_report

    meter = Meter()
    conductor = retry(arguments.run, arguments.overrides, meter)
    again = shlex.join(["cai", "retry", arguments.run, *arguments.overrides, "--failed"])
    ended = to_its_end(conductor, meter, lambda: write_report(arguments.run), again=again, quiet=arguments.quiet)
    if ended is None:
        return 130
    result, report = ended
    show(result, meter, report, as_json=arguments.json)
    return int(result.exit_code)
