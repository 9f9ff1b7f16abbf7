"""`cai eval`: what changed in a run, or several policies against each other on a suite."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "eval",
        "measure what changed in a run, or set policies against each other on a suite",
        "cai eval --policy smollm2-135m-instruct --policy runs/quickstart --suite everyday limit=60",
    )
    parser.add_argument(
        "words", nargs="*", metavar="RUN|a.b=c", help="a run's folder; and overrides of the suite or of engine.…"
    )
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="[NAME=]CHECKPOINT",
        help="a checkpoint, a server's URL or a run's folder (its last policy); the first one is the baseline",
    )
    parser.add_argument("--suite", help="a suite's file, or the name of one that ships")
    parser.add_argument("--judge", metavar="CHECKPOINT", help="the model that judges (default: the run's, or policy 1)")
    parser.add_argument("--scores", metavar="FILE", help="JSONL of answer ids and scores, for best-of-n")
    out = "the folder in which the contest's own is made (default: runs; of a RUN, beside it)"
    parser.add_argument("--out", help=out)
    parser.add_argument("--suites", action="store_true", help="list the suites that ship")
    parser.add_argument(
        "--trust-remote-code",
        action="store_true",
        help="run Python code that comes with the checkpoints named here; it may do anything, so read it before",
    )
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Do what the arguments ask for."""
    overrides = [word for word in arguments.words if "=" in word]
    runs = [word for word in arguments.words if "=" not in word]
    if arguments.suites:
        return _list_suites(arguments)
    _check(arguments, runs, overrides)
    if arguments.suite is None:
        return _of_folder(arguments, runs[0])
    return _contest(arguments, runs, overrides)


def _check(arguments: argparse.Namespace, runs: list[str], overrides: list[str]) -> None:
    """Raise UserError where the arguments do not fit together."""
    from cai.errors import UserError

    if len(runs) > 1:
        raise UserError(f"expected one run, found {runs}; set several policies against each other with --policy")
    if bool(runs) == bool(arguments.policy):
        raise UserError("give either a run's folder or at least one --policy; see `cai eval --help`")
    if arguments.policy and arguments.suite is None:
        raise UserError("--policy needs --suite: the prompts to answer; `cai eval --suites` lists those that ship")
    if runs and arguments.trust_remote_code and not arguments.judge:
        what = "--trust-remote-code is for what --policy and --judge name"
        raise UserError(f"{what}; a run keeps the leave of its config")
    asked = [name for name in ("judge", "scores", "out") if getattr(arguments, name)] + overrides
    if arguments.suite is None and asked:
        raise UserError(f"found {', '.join(asked)} without --suite; a run's own evaluation is measured as it was made")


def _list_suites(arguments: argparse.Namespace) -> int:
    from cai.cli.terminal import say, say_json, table
    from cai.evaluate import suite

    suites = [suite.load(name) for name in suite.shipped_names()]
    if arguments.json:
        say_json([s.model_dump(mode="json") for s in suites])
        return 0
    rows = [[s.name, " ".join(s.measure), s.description] for s in suites]
    say(table(rows, head=("suite", "measures", "what it says")))
    return 0


def _of_folder(arguments: argparse.Namespace, folder: str) -> int:
    """Show what a run's or a contest's folder holds; nothing is asked of any model."""
    from cai import evaluate
    from cai.cli import evaltables
    from cai.cli.terminal import say, say_json
    from cai.evaluate import standings
    from cai.trail import RunView

    with RunView(folder) as run:
        is_contest = "contest" in run.manifest
        measured = standings.measure(run) if is_contest else evaluate.measure(run)
    if arguments.json:
        say_json(measured)
        return 0
    for line in (evaltables.of_contest if is_contest else evaltables.of_run)(measured):
        say(line)
    return 0


def _contest(arguments: argparse.Namespace, runs: list[str], overrides: list[str]) -> int:
    import asyncio
    import sys

    from cai.cli import evaltables
    from cai.cli.run import interruptible
    from cai.cli.terminal import Progress, say, say_json
    from cai.evaluate import standings
    from cai.executors import local
    from cai.pipeline.contest import Contest, read_scores
    from cai.pipeline.meter import Meter
    from cai.report.contest import write
    from cai.trail import RunView

    scores = read_scores(arguments.scores) if arguments.scores else None
    meter = Meter()
    contest = Contest(_entry(arguments, runs, overrides), meter)
    with Progress(meter, quiet=arguments.quiet):
        try:
            folder = local.run(interruptible(contest.run()))
        except asyncio.CancelledError:
            print("cai: interrupted; the same command goes on where this one stopped", file=sys.stderr)
            return 130
        with meter.stage("measure", 1):
            with RunView(folder) as run:
                measured = standings.measure(run, scores)
            page = write(folder, measured)
    calls = {"made": meter.tally.made, "reused": meter.tally.reused}
    if arguments.json:
        say_json(measured | {"folder": str(folder), "calls": calls, "failed": contest.failed})
    else:
        for line in evaltables.of_contest(measured):
            say(line)
        say(f"calls: {calls['made']} made, {calls['reused']} reused; prompts failed: {contest.failed}")
        say(f"folder: {folder}")
        say(f"report: {page}")
    return 3 if contest.failed else 0


def _entry(arguments: argparse.Namespace, runs: list[str], overrides: list[str]) -> Any:
    from cai.evaluate import suite as suites
    from cai.pipeline import contestants
    from cai.trail import RunView

    of_engine = [word for word in overrides if word.startswith("engine.")]
    rest = tuple(word for word in overrides if not word.startswith("engine."))
    suite = suites.load(arguments.suite, overrides=rest)
    if runs:
        with RunView(runs[0]) as run:
            named_here = of_engine, arguments.judge, Path(arguments.out) if arguments.out else None
            return contestants.of_run(run, suite, *named_here, trusted=arguments.trust_remote_code)
    named = suite, arguments.policy, arguments.judge, of_engine, Path(arguments.out or "runs")
    return contestants.of_names(*named, trusted=arguments.trust_remote_code)
