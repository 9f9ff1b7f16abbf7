"""`cai reward`: score answers with trained reward models, and say how good a reward model is."""

from __future__ import annotations

import argparse
from typing import Any

from cai.cli import add_command, add_json

_TRUST = "run Python code that comes with the base model; it may do anything, so read it before"


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "reward",
        "score answers with reward models, or report how good one is",
        "cai reward score a.jsonl -m checkpoints/rm",
    )
    parts = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    score = add_command(
        parts,
        "score",
        "score the answers of a file",
        "cai reward score answers.jsonl --model checkpoints/rm --weight privacy=2 -o scored.jsonl",
    )
    score.add_argument("file", help="JSONL rows with prompt and response (or completion), or with chosen and rejected")
    score.add_argument("-m", "--model", action="append", required=True, help="a reward model's folder; several combine")
    score.add_argument(
        "--how",
        choices=("mean", "worst", "cautious"),
        default="mean",
        help="how an ensemble's members combine: mean, smallest, or mean minus CAUTION times their variance",
    )
    score.add_argument("--caution", type=float, default=0.1, help="for --how cautious (default 0.1)")
    score.add_argument("--weight", action="append", default=[], metavar="PRINCIPLE=W", help="weigh a principle's head")
    score.add_argument("--trust-remote-code", action="store_true", help=_TRUST)
    score.add_argument("-o", "--out", help="write the rows with their rewards here as JSONL")
    add_json(score)
    score.set_defaults(handle=handle_score)
    report = add_command(
        parts, "report", "say how good a reward model is on its held-out pairs", "cai reward report checkpoints/rm"
    )
    report.add_argument("model", help="the folder of a training that had held_out set")
    report.add_argument("--figure", help="where the reliability curve goes (default: reliability.svg in the folder)")
    add_json(report)
    report.set_defaults(handle=handle_report)
    merged = add_command(
        parts,
        "merge",
        "fold a reward model's adapter into its base, to be served as a judge",
        "cai reward merge checkpoints/rm -o models/rm",
    )
    merged.add_argument("model", help="the folder of a finished reward training with an adapter and one head")
    merged.add_argument("--trust-remote-code", action="store_true", help=_TRUST)
    merged.add_argument("-o", "--out", help="where the whole model goes (default: model in the folder)")
    add_json(merged)
    merged.set_defaults(handle=handle_merge)


def handle_merge(arguments: argparse.Namespace) -> int:
    """Merge, and say where."""
    from cai.cli.terminal import say, say_json
    from cai.train.run import quiet_libraries

    quiet_libraries()
    from cai.train.merging import merge

    folder = merge(arguments.model, arguments.out, trust_remote_code=arguments.trust_remote_code)
    if arguments.json:
        say_json({"path": str(folder)})
    else:
        say(f"merged: {folder}")
    return 0


def handle_score(arguments: argparse.Namespace) -> int:
    """Read, score, show or write."""
    from pathlib import Path

    from cai import canon
    from cai.cli.terminal import say, say_json, table
    from cai.manifest import write_atomically
    from cai.train.rows import load_answers
    from cai.train.run import quiet_libraries

    quiet_libraries()
    from cai.train.job import pick_device
    from cai.train.scoring import Ensemble

    rows = load_answers(arguments.file)
    device = pick_device("auto")
    ensemble = Ensemble.load(arguments.model, device=device, trust_remote_code=arguments.trust_remote_code)
    weights = dict(_weight(text) for text in arguments.weight)
    flat = [(row.prompt, answer) for row in rows for answer in row.answers]
    rewards, members = ensemble.score(flat, how=arguments.how, caution=arguments.caution, weights=weights)
    scored, at = [], 0
    for row in rows:
        ends = at + len(row.answers)
        found = {"line": row.line, "rewards": rewards[at:ends].tolist(), "members": members[at:ends].tolist()}
        scored.append(found)
        at = ends
    if arguments.out:
        lines = (canon.dumps({**row.body, **found}) + b"\n" for row, found in zip(rows, scored, strict=True))
        write_atomically(Path(arguments.out), b"".join(lines))
    if arguments.json:
        say_json(scored)
    elif arguments.out:
        say(f"{len(rows)} rows: {arguments.out}")
    else:
        shown = [
            [found["line"], " ".join(f"{r:+.3f}" for r in found["rewards"]), row.answers[0][:80]]
            for row, found in zip(rows, scored, strict=True)
        ]
        say(table(shown, head=("line", "reward", "answer")))
    return 0


def handle_report(arguments: argparse.Namespace) -> int:
    """Read the held-out scores, and show or draw what they say."""
    from pathlib import Path

    from cai.cli.terminal import say, say_json, table
    from cai.evaluate.rewards import quality, read
    from cai.manifest import write_atomically
    from cai.report.reliability import drawn

    folder = Path(arguments.model)
    parts = read(folder / "held_out.jsonl")
    found = quality(parts["held_out"], parts["train"])
    figure = Path(arguments.figure) if arguments.figure else folder / "reliability.svg"
    write_atomically(figure, drawn(found))
    if arguments.json:
        say_json({**found.as_dict(), "figure": str(figure)})
        return 0
    low, high = found.interval or (None, None)
    say(
        table(
            [
                ["held-out pairs", found.n],
                ["accuracy", f"{_figure(found.accuracy)}  ({_figure(low)} to {_figure(high)}, 95 %)"],
                ["accuracy on training pairs", _figure(found.train_accuracy)],
                ["generalisation gap", _figure(found.gap)],
                ["AUC", _figure(found.auc)],
                ["log loss (knowing nothing: 0.693)", _figure(found.log_loss)],
                ["calibration error (ECE)", _figure(found.ece)],
                ["correlation of reward and length", _figure(found.length_correlation)],
                ["longer answer rewarded more", _figure(found.longer_wins)],
                ["longer answer preferred by the label", _figure(found.longer_is_chosen)],
            ]
        )
    )
    say(
        table(
            [[f"{b.low:.1f}", b.n, f"{b.said:.3f}", f"{b.was:.3f}"] for b in found.bins],
            head=("from", "pairs", "said", "was"),
        )
    )
    say(f"reliability: {figure}")
    return 0


def _weight(text: str) -> tuple[str, float]:
    from cai.errors import UserError

    name, equals, value = text.rpartition("=")
    try:
        if not equals:
            raise ValueError
        return name, float(value)
    except ValueError:
        raise UserError(f"--weight '{text}': expected a principle and a number, such as privacy=2") from None


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
