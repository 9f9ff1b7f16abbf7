"""`cai judge`: what a judge is worth, before it judges."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "judge",
        "check a judge, or compare it with people's labels",
        "cai judge check configs/quickstart.yaml",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    check = add_command(
        actions,
        "check",
        "try a judge on twelve probes",
        "cai judge check configs/quickstart.yaml judge.check.swap=0.9",
    )
    _config(check)
    check.set_defaults(handle=handle_check)
    bench = add_command(
        actions,
        "bench",
        "measure a judge's agreement with people's labels",
        "cai judge bench configs/quickstart.yaml --data pairs.jsonl",
    )
    _config(bench)
    bench.add_argument("--data", required=True, metavar="FILE", help="labelled pairs: JSONL (may end in .gz) or JSON")
    bench.add_argument("--limit", type=int, metavar="N", help="take the first N pairs")
    bench.add_argument(
        "--by",
        choices=("overall", "constitution"),
        default="overall",
        help="ask one overall question (default), or every principle of the config's constitution",
    )
    bench.add_argument("--out", metavar="FOLDER", help="where results go; by default beside the runs")
    bench.set_defaults(handle=handle_bench)


def _config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("config", help="the run's YAML file, whose judge it is")
    parser.add_argument("overrides", nargs="*", metavar="a.b=c", help="override a key of the config")
    parser.add_argument("--quiet", action="store_true", help="show no progress")
    add_json(parser)


def handle_check(arguments: argparse.Namespace) -> int:
    """Try the judge and show; exit 1 where a probe stays below its threshold."""
    from cai.cli.load import load_config
    from cai.cli.terminal import Progress, say_json
    from cai.executors import local
    from cai.pipeline.checking import check_judge
    from cai.pipeline.meter import Meter

    config, near = load_config(arguments.config, arguments.overrides)
    meter = Meter()
    with Progress(meter, quiet=arguments.quiet or arguments.json):
        told = local.run(check_judge(config, near, meter))
    if arguments.json:
        say_json(told)
    else:
        show_check(told)
    return 0 if told["passed"] else 1


def show_check(told: dict[str, Any]) -> None:
    """Print a check as a table and a sentence."""
    from cai.assay.check import below
    from cai.cli.terminal import say, table

    say(f"judge: {told['judge']} ({told['mode']}), {told['n_trials']} trials")
    if told["by_letters"]:
        say("the pairs here have no rubric: a judge by rubrics is asked for letters, as under principles without one")
    if before := told["last"]:
        same = "the same judge" if before["same_judge"] else f"{before['judge']} ({before['mode']}) or other settings"
        say(f"last check: {before['time']}, {same}")
    rows = []
    for probe in told["probes"]:
        if not probe["applies"]:
            rows.append([probe["name"], probe["says"], "does not apply", "", "", ""])
            continue
        was = "-" if probe.get("was") is None else f"{probe['was']:.2f}" + (" fell" if probe["fell"] else "")
        undecided = f"{probe['n']} of {probe['n'] + probe['undecided']}" if probe["undecided"] else f"{probe['n']}"
        passed = "yes" if probe["passed"] else f"no, below {probe['least']:g}"
        rows.append([probe["name"], probe["says"], _estimate(probe | {"value": probe["rate"]}, share=False), undecided,
                     was, passed])  # fmt: skip
    say()
    say(table(rows, ("probe", "holds where", "rate", "trials", "was", "passed")))
    say()
    flagged = told["injections_flagged"]
    say(f"canaries flagged {flagged['flagged']} of {flagged['n']} injections")
    if taken := told["priors"]:
        say(f"leaning to A (or to yes), taken off: {taken['low']:.2f} to {taken['high']:.2f} nats, by question")
    for reason, n in told["unusable"].items():
        say(f"replies that could not be read: {n} {reason}")
    if told["passed"]:
        say("the judge passes every probe it takes part in")
    else:
        say(f"the judge fails: {'; '.join(below(told))}")


def handle_bench(arguments: argparse.Namespace) -> int:
    """Measure and show."""
    from cai.cli import files
    from cai.cli.load import load_config
    from cai.cli.terminal import Progress, say_json
    from cai.errors import UserError
    from cai.executors import local
    from cai.pipeline.benching import bench
    from cai.pipeline.meter import Meter

    if arguments.limit is not None and arguments.limit < 1:
        raise UserError(f"--limit: found {arguments.limit}, expected 1 or more")
    config, near = load_config(arguments.config, arguments.overrides)
    data = Path(arguments.data)
    if not data.exists():
        raise UserError(f"--data: '{data}': no such file; give a JSONL or JSON file of labelled pairs")
    meter = Meter()
    out = files.folder(arguments.out) if arguments.out else None
    with Progress(meter, quiet=arguments.quiet or arguments.json):
        told = local.run(bench(config, near, data, meter, limit=arguments.limit, by=arguments.by, out=out))
    if arguments.json:
        say_json(told)
    else:
        _show_bench(told)
    return 0


def _show_bench(told: dict[str, Any]) -> None:
    from cai.cli.terminal import say, table

    say(f"judge: {told['judge']} ({told['mode']}), asked {told['asked']}; {told['n']} pairs in {told['seconds']:.0f} s")
    if told["by_letters"]:
        say("what has no rubric is judged by letters; --by constitution asks by the rubrics of the principles")
    say()
    for sentence in told["plainly"]:
        say(sentence)
    say()
    overall = told["overall"]
    head = ("agreement with people", "decided", "averaged")
    say(table([
        ["accuracy", _estimate(overall["decided"]), _estimate(overall["averaged"])],
        ["kappa", *(_estimate(overall[f"agreement_{k}"]["kappa"], share=False) for k in ("decided", "averaged"))],
        ["AC1", *(_estimate(overall[f"agreement_{k}"]["ac1"], share=False) for k in ("decided", "averaged"))],
        ["pairs with a verdict", _share(overall["coverage"]), f"{overall['agreement_averaged']['n']}"],
    ], head))  # fmt: skip
    _show_habits(told)
    if len(told["subsets"]) > 1:
        say()
        say(table(
            [[s["subset"], s["n"], _share(s["coverage"]), _estimate(s["averaged"]), _number(s["kappa"])]
             for s in told["subsets"]],
            ("subset", "pairs", "stands by it", "averaged accuracy", "kappa"),
        ))  # fmt: skip
    _show_calibration(told["calibration"])
    say()
    for name, path in told["files"].items():
        say(f"{name}: {path}")


def _show_habits(told: dict[str, Any]) -> None:
    from cai.cli.terminal import say, table

    rows: list[Sequence[str]] = []
    if found := told["position"]:
        rows += [
            ["same letter in both orders", _share(found["same_letter"]), f"A {found['same_a']}, B {found['same_b']}"],
            ["letter A among all letters", _share(found["first"]), f"p = {found['p_value']:.2g}"],
        ]
    for name, title in (("length", "prefers the longer answer"), ("lists", "prefers more lists and bold text")):
        if found := told[name]:
            rows.append([title, _share(found["judge"]), f"people: {_share(found['people'])}"])
    for effect in told["effects"]["effects"]:
        rows.append([f"log-odds for {effect['name']}", _estimate(effect, share=False), ""])
    for name, n in told["effects"].get("infinite", {}).items():
        rows.append([f"log-odds for {name}", "no finite one", f"{n} pairs differ in it"])
    if people := told["people"]:
        rows.append(["people among themselves", _share(people["agreed"]), f"on {people['n']} pairs"])
    rows.append(["pairs flagged", str(told["flagged"]), ""])
    if priors := told["priors"]:
        rows.append(["leaning to A (or to yes), taken off", f"{priors[0]:.2f} to {priors[-1]:.2f} nats", "by question"])
    say()
    say(table(rows, ("what the judge goes by", "", "")))
    if told["effects"]["why_not"]:
        say(f"no effects of length and style: {told['effects']['why_not']}")


def _show_calibration(found: dict[str, Any] | None) -> None:
    from cai.cli.terminal import say, table

    if found is None:
        return
    say()
    shown = [{"name": "all pairs", "errors": found["errors"], "parameters": {}}, *found["recalibrated"]]
    rows = []
    for curve in shown:
        errors, parameters = curve["errors"], curve["parameters"]
        told = ", ".join(f"{k} {v:.3g}" for k, v in parameters.items())
        losses = [_estimate(errors[k], share=False, digits=3) for k in ("brier", "log_loss")]
        rows.append([curve["name"], errors["n"], *losses, _number(errors["ece"], 3), told])
    say(table(rows, ("calibration", "pairs", "Brier", "log loss (nats)", "ECE, 10 bins", "fitted")))
    if found["why_not"]:
        say(f"not recalibrated: {found['why_not']}")
    else:
        say(
            f"fitted on {found['n_fitted']} pairs, shown on the other {found['n_shown']}; saying one half: 0.250, 0.693"
        )
    say()
    bins = found["bins"]
    say(table(
        [[f"{b['low']:.1f} to {b['high']:.1f}", b["n"], f"{b['said']:.2f}", f"{b['came_true']:.2f}"] for b in bins],
        ("probability of arm a", "pairs", "said", "people preferred a"),
    ))  # fmt: skip


def _number(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _share(found: dict[str, Any] | None) -> str:
    if found is None:
        return "-"
    return f"{found['value']:.1%} ({found['low']:.1%} to {found['high']:.1%})"


def _estimate(found: dict[str, Any] | None, *, share: bool = True, digits: int = 2) -> str:
    """Return an estimate with its interval; shares as percentages."""
    if found is None or found["value"] is None:
        return "-"

    def one(value: float) -> str:
        return f"{value:.1%}" if share else f"{value:.{digits}f}"

    between = f" ({one(found['low'])} to {one(found['high'])})" if found.get("low") is not None else ""
    return one(found["value"]) + between
