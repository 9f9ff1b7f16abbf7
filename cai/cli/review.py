"""`cai review`: human spot-checks of a run, blind, in a terminal or elsewhere."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from cai.cli import add_command, add_json

_MOST_TOLD = 50
"""Rows that were left out of an import and are told one by one."""
_FORMATS = ("label-studio", "argilla", "annotated-pairs", "csv", "jsonl")


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands, "review", "sample, vote on and count human spot-checks of a run", "cai review next runs/quickstart"
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add_sample(actions)
    _add_next(actions)
    run = "runs/quickstart"
    agreement = _action(actions, "agreement", "tell how far judge and people agree", f"agreement {run}")
    agreement.set_defaults(handle=handle_agreement)
    disputes = _action(actions, "disputes", "list pairs of which reviewers say different things", f"disputes {run}")
    disputes.set_defaults(handle=handle_disputes)
    override = _action(
        actions, "override", "decide a pair's label outright", f'override {run} b2:1f --label b --reason "unsafe"'
    )
    override.add_argument("pair", help="the pair's id, or the beginning of it")
    override.add_argument(
        "--label", choices=("a", "b", "tie"), help="the better arm; without it the override is taken back"
    )
    override.add_argument("--reason", required=True, help="why, in a few words")
    override.add_argument("--blind", action="store_true", help="say that the judge's verdict was not seen")
    _add_reviewer(override)
    override.set_defaults(handle=handle_override)
    similar = _action(
        actions, "similar", "find near duplicates of pairs whose label people changed", f"similar {run} --propose"
    )
    similar.add_argument("--threshold", type=float, default=0.6, help="shared word triples, 0 to 1 (default: 0.6)")
    similar.add_argument("--propose", action="store_true", help="put them into the review queue")
    _add_reviewer(similar)
    similar.set_defaults(handle=handle_similar)
    _add_exchange(actions)


def _action(actions: Any, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = add_command(actions, name, summary, f"cai review {example}")
    parser.add_argument("run", help="the run's folder")
    add_json(parser)
    return parser


def _add_reviewer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--as", dest="reviewer", metavar="NAME", help="who reviews (default: the login name)")


def _add_sample(actions: Any) -> None:
    parser = _action(actions, "sample", "draw pairs for review", "sample runs/quickstart --estimate 140 --value 60")
    parser.add_argument(
        "--estimate", type=int, metavar="N", help="at random from all pairs (default: 140, or as many as there are)"
    )
    parser.add_argument("--value", type=int, default=60, metavar="N", help="where a look pays (default: 60)")
    parser.add_argument("--by-principle", action="store_true", help="ask about one drawn principle per pair")
    parser.add_argument("--phase", action="append", help="only pairs of this phase (may be given several times)")
    parser.add_argument(
        "--gold", metavar="FILE", help="JSONL of pairs with a known answer (default: the worked examples)"
    )
    parser.add_argument("--seed", type=int, help="decides the draw (default: the run's seed)")
    _add_reviewer(parser)
    parser.set_defaults(handle=handle_sample)


def _add_next(actions: Any) -> None:
    parser = _action(actions, "next", "vote on what waits, one key each", "next runs/quickstart --as ann")
    _add_reviewer(parser)
    parser.set_defaults(handle=handle_next)


def _add_exchange(actions: Any) -> None:
    export = _action(
        actions,
        "export",
        "write the waiting items for another tool",
        "export runs/quickstart --format label-studio -o tasks/",
    )
    export.add_argument("--format", required=True, choices=_FORMATS)
    export.add_argument("-o", "--out", required=True, help="a folder (label-studio) or file to write")
    _add_reviewer(export)
    export.set_defaults(handle=handle_export)
    import_ = _action(
        actions,
        "import",
        "take in votes that were cast in another tool",
        "import runs/quickstart --format label-studio votes.json",
    )
    import_.add_argument("file", help="what the tool exported")
    import_.add_argument("--format", required=True, choices=_FORMATS)
    import_.add_argument("--as", dest="reviewer", metavar="NAME", help="who voted, where the file does not say")
    import_.set_defaults(handle=handle_import)


def _name(arguments: argparse.Namespace) -> str:
    import getpass

    from cai.errors import UserError

    try:
        return getpass.getuser() if arguments.reviewer is None else str(arguments.reviewer)
    except (OSError, KeyError):
        raise UserError("who reviews? no login name here; give --as NAME") from None


def handle_sample(arguments: argparse.Namespace) -> int:
    """Draw both queues and say what was drawn."""
    from cai.cli.terminal import tell
    from cai.errors import UserError
    from cai.review import Desk

    with Desk(arguments.run) as desk:
        unknown = set(arguments.phase or []) - set(desk.run.phases)
        if unknown:
            raise UserError(f"{arguments.run}: no phase {sorted(unknown)}; this run has {desk.run.phases}")
        if (arguments.estimate or 0) < 0 or arguments.value < 0:
            raise UserError("--estimate and --value: expected 0 or more")
        before = set(desk.book.items)
        draw = desk.draw(
            estimate=arguments.estimate,
            value=arguments.value,
            author=_name(arguments),
            seed=arguments.seed,
            phases=arguments.phase,
            by_principle=arguments.by_principle,
            gold=arguments.gold,
        )
        new = [i for i in desk.book.items.values() if i.id not in before]
        counts = {
            q: sum(i.queue == q and i.repeats is None for i in new) for q in ("estimate", "value", "practice", "gold")
        }
        counts["repeats"] = sum(i.repeats is not None for i in new)
    found = {"population": draw.population, "strata": draw.strata, "drawn": counts, "seed": draw.seed}
    tell(arguments.json, found, _drawn(arguments.run, found, draw.number))
    return 0


def _drawn(run: str, found: dict[str, Any], number: int) -> Iterator[str]:
    from cai.cli.terminal import table

    yield f"drawn from {found['population']} judged pairs:"
    yield table([[k, v] for k, v in found["drawn"].items()], head=("queue", "items"))
    yield table([[k, v] for k, v in found["strata"].items()], head=("stratum", "pairs"))
    if not found["drawn"]["practice"] and number == 1:
        yield "no practice round: the constitution has no worked pairs; --gold FILE gives some"
    yield f"vote: cai review next {run}   or in the browser: cai view {run}"


def handle_next(arguments: argparse.Namespace) -> int:
    """Put the waiting items, one by one."""
    from cai.cli.voting import vote_on_what_waits
    from cai.review import Desk

    with Desk(arguments.run) as desk:
        return vote_on_what_waits(desk, _name(arguments), as_json=arguments.json)


def handle_agreement(arguments: argparse.Namespace) -> int:
    """Count and tell."""
    from cai.cli.terminal import tell
    from cai.review.agreement import report
    from cai.review.words import told
    from cai.trail import RunView

    with RunView(arguments.run) as run:
        found = report(run)
    tell(arguments.json, found, told(found))
    return 0


def handle_disputes(arguments: argparse.Namespace) -> int:
    """List pairs that somebody should decide."""
    from cai.cli.terminal import table, tell
    from cai.review import Desk

    with Desk(arguments.run) as desk:
        found = [d | {"asked": _asked(desk.run, d["comparison_id"])} for d in desk.disputes()]
    rows = [[d["comparison_id"], ", ".join(f"{r}: {c}" for r, c in d["votes"].items()), d["asked"][:60]] for d in found]
    lines = [
        table(rows, head=("pair", "votes", "asked")),
        f'decide: cai review override {arguments.run} PAIR --label a|b|tie --reason "..."',
    ]
    tell(arguments.json, found, lines if rows else ["reviewers disagree on no pair"])
    return 0


def _asked(run: Any, comparison_id: str) -> str:
    """Return what a comparison's answers were given to."""
    return str(run.record(run.record(comparison_id).prompt_id).messages[-1].content)


def handle_override(arguments: argparse.Namespace) -> int:
    """Append a label, or take one back."""
    from cai.audit.find import pair_id
    from cai.cli.terminal import tell
    from cai.pairs import stale_checkpoints
    from cai.review import Desk

    who = _name(arguments)
    with Desk(arguments.run) as desk:
        pair, n_settled = pair_id(desk.run, arguments.pair), 0
        if arguments.label:
            made = desk.override(pair, arguments.label, author=who, reason=arguments.reason, blind=arguments.blind)
            n_settled = len(made.settles)
        else:
            desk.withdraw(pair, author=who, reason=arguments.reason)
        stale = stale_checkpoints(desk.run)
    found = {"pair_id": pair, "label": arguments.label, "author": who, "settled": n_settled, "stale": stale}
    between = f", between {n_settled} votes that differ" if n_settled else ""
    lines = [f"{pair}: {arguments.label or 'the override is taken back'} (by {who}{between})"]
    lines += [f"stale: {checkpoint} was trained on rows that have changed since" for checkpoint in stale]
    lines += [f"cai pairs {arguments.run} writes the pairs anew; cai review similar {arguments.run} looks for its like"]
    tell(arguments.json, found, lines)
    return 0


def handle_similar(arguments: argparse.Namespace) -> int:
    """List, and propose if asked."""
    from cai.cli.terminal import table, tell
    from cai.errors import UserError
    from cai.review import Desk
    from cai.review.similar import similar

    if not 0 < arguments.threshold <= 1:
        raise UserError(f"--threshold {arguments.threshold:g}: expected a share above 0 and at most 1")
    with Desk(arguments.run) as desk:
        found = similar(desk.run, desk.book, threshold=arguments.threshold)
        n_new = len(desk.propose([f.comparison_id for f in found], _name(arguments))) if arguments.propose else 0
    rows = [[f.comparison_id, f"{f.overlap:.2f}", f.like] for f in found]
    lines = [table(rows, head=("pair", "overlap", "like the overridden"))]
    lines = lines if rows else ["no pair resembles an overridden one"]
    lines += [f"proposed for review: {n_new}"] if arguments.propose else []
    tell(arguments.json, {"similar": [f._asdict() for f in found], "proposed": n_new}, lines)
    return 0


def handle_export(arguments: argparse.Namespace) -> int:
    """Write tasks."""
    from cai.cli.terminal import tell
    from cai.review import Desk
    from cai.review.exchange import export

    with Desk(arguments.run) as desk:
        written = export(desk, arguments.format, arguments.out, _name(arguments))
    tell(arguments.json, written, [f"{written['items']} items written to {', '.join(written['files'])}"])
    return 0


def handle_import(arguments: argparse.Namespace) -> int:
    """Take votes in and report every row that was left out."""
    from cai.cli.terminal import table, tell
    from cai.review import Desk
    from cai.review.exchange import import_votes

    with Desk(arguments.run) as desk:
        found = import_votes(desk, arguments.format, arguments.file, arguments.reviewer)
    lines = [f"votes taken in: {found['votes']}"]
    if found["left_out"]:
        rows = [[r["row"], r["why"]] for r in found["left_out"]]
        lines.append(table(rows[:_MOST_TOLD], head=("row", "left out because")))
        lines += [f"and {len(rows) - _MOST_TOLD:,} more (--json tells all)"] if len(rows) > _MOST_TOLD else []
    tell(arguments.json, found, lines)
    return 0
