"""`cai train`: train the checkpoints of a run whose rows are new or have changed, or what a training file asks for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "train",
        "train a run's checkpoints anew where their rows have changed, or train what a training file asks for",
        "cai train runs/quickstart\n  cai train configs/train/reward.yaml out=checkpoints/rm\n"
        "  cai train configs/train/reward.yaml --show 3",
    )
    parser.add_argument("run", help="the run's folder, or a training file (YAML)")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the training file")
    parser.add_argument("--phase", help="train this phase even if its rows have not changed")
    parser.add_argument("--show", type=int, metavar="N", help="show N rows as the model reads them, and train nothing")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)
    parser.set_defaults(handle=handle)


def handle(arguments: argparse.Namespace) -> int:
    """Set stale checkpoints aside, then go on with the run, which trains what is missing; or train the file."""
    from cai.errors import UserError

    if arguments.show is not None and arguments.show < 1:
        raise UserError(f"--show {arguments.show}: expected how many rows to show, 1 or more")
    if arguments.run.endswith((".yaml", ".yml")):
        return _file(arguments)
    if arguments.overrides:
        raise UserError(f"'{arguments.overrides[0]}': overrides are for training files; a run keeps its own config")
    if arguments.show:
        from cai.pipeline.retrain import show

        return _show(show(arguments.run, arguments.phase, arguments.show), arguments.json)
    return _run(arguments)


def _run(arguments: argparse.Namespace) -> int:
    """Train a run's checkpoints, and write its report anew."""
    import shlex

    from cai.cli.run import to_its_end
    from cai.cli.terminal import tell
    from cai.pipeline.meter import Meter
    from cai.pipeline.retrain import retrain
    from cai.report import kept_report, write_report

    meter = Meter()
    conductor, anew = retrain(arguments.run, arguments.phase, meter)
    ended = to_its_end(
        conductor,
        meter,
        lambda: kept_report(arguments.run) or write_report(arguments.run),
        again=shlex.join(["cai", "train", arguments.run]),
        quiet=arguments.quiet,
    )
    if ended is None:
        return 130
    result, report = ended
    told = result.as_dict() | {"retrained": anew, "report": report}
    names = ", ".join(anew) or "nothing, every checkpoint is up to date"
    tell(arguments.json, told, (f"trained anew: {names}", f"report: {report}"))
    return int(result.exit_code)


def _file(arguments: argparse.Namespace) -> int:
    """Train what a training file asks for, in this process."""
    from cai import shipped
    from cai.cli.terminal import say, say_json
    from cai.errors import UserError
    from cai.train.run import quiet_libraries, spec_of, stoppable, train_with

    spec = spec_of(shipped.find(arguments.run), arguments.overrides)
    if arguments.show:
        from cai.config import SAMPLING
        from cai.train.data import show_file

        if spec["method"] in SAMPLING:
            raise UserError(f"{arguments.run}: {spec['method']} trains on prompts alone; there are no rows to show")

        trusted = spec["trust_remote_code"]
        texts = show_file(spec["rows"], spec["method"], spec["base"], arguments.show, trust_remote_code=trusted)
        return _show(texts, arguments.json)
    quiet_libraries()

    def tell(row: dict[str, Any]) -> None:
        loss = "" if row.get("loss") is None else f"  loss {row['loss']:.4f}"
        line = f"step {row['step']}/{row['steps']}{loss}  {row.get('eta_s', 0):.0f} s left"
        if "reference_rows" in row:
            line = f"reference: {row['reference_rows']} rows"
        print(line, file=sys.stderr, flush=True)

    with stoppable() as stop:
        result = train_with(spec, tell, stop)
    if arguments.json:
        say_json({"path": str(result.path), "reused": result.reused, "manifest": result.manifest})
    else:
        say(f"{'found' if result.reused else 'trained'}: {result.path}")
        if spec["held_out"] and spec["method"] == "reward":
            say(f"how good it is: cai reward report {Path(spec['out'])}")
    return 0


def _show(texts: list[str], as_json: bool) -> int:
    from cai.cli.terminal import say, say_json

    if as_json:
        say_json(texts)
    else:
        say("\n\n".join(texts))
    return 0
