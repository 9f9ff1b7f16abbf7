"""`cai audit`: ask a run why, whether it is sound, and anything SQL can ask."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from cai.cli import add_command, add_json


def add(commands: Any) -> None:
    """Add the commands."""
    parser = add_command(
        commands,
        "audit",
        "ask a run why, and whether what it keeps can be trusted",
        "cai audit summary runs/quickstart",
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _action(actions, "summary", "tell what the judge did, and how far to believe it", "", handle_summary)
    why = add_command(
        actions,
        "why",
        "show everything behind a pair, a decision, a training row or a checkpoint",
        "cai audit why runs/quickstart pairs.jsonl:17",
    )
    why.add_argument(
        "what",
        nargs="+",
        metavar="[RUN] ID",
        help="id, FILE:LINE, or checkpoint; RUN is optional where ID is a path in it or one run in runs/ knows it",
    )
    why.add_argument("--full", action="store_true", help="show long texts whole")
    add_json(why)
    why.set_defaults(handle=handle_why)
    query = _action(actions, "query", "run SQL, or a named question", "order-flips", handle_query)
    query.add_argument("sql", nargs="?", help="a SELECT, or a question's or view's name; without it they are listed")
    query.add_argument("--list", action="store_true", help="list the questions, the views and their columns")
    query.add_argument("--with", dest="other", metavar="RUN", help="a second run, as other_pairs and other_votes")
    query.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", help="fill in :NAME")
    query.add_argument("--limit", type=int, default=1000, help="rows at most (default: 1000)")
    verify = _action(actions, "verify", "find whatever was changed, removed or swapped", "", handle_verify)
    verify.add_argument("--expect", metavar="HEAD", help="a head kept elsewhere, which must be in the ledger")
    replay = _action(actions, "replay", "read every reply and fold every label again", "", handle_replay)
    replay.add_argument("--live", type=int, metavar="N", help="also ask the judge N decisions again")
    compare = _action(actions, "compare", "tell what differs from another run, and which labels flipped", "runs/other",
                      handle_compare)  # fmt: skip
    compare.add_argument("other", help="the other run's folder")
    export = _action(actions, "export", "write decisions and pairs for other tools", "--format parquet -o audit/",
                     handle_export)  # fmt: skip
    export.add_argument("--format", required=True, choices=("parquet", "jsonl", "annotated-pairs"))
    export.add_argument("-o", "--out", required=True, help="a folder (parquet, jsonl) or a file (annotated-pairs)")


def _action(actions: Any, name: str, summary: str, more: str, handle: Any) -> argparse.ArgumentParser:
    parser = add_command(actions, name, summary, f"cai audit {name} runs/quickstart {more}".rstrip())
    parser.add_argument("run", help="the run's folder")
    add_json(parser)
    parser.set_defaults(handle=handle)
    return parser


def handle_summary(arguments: argparse.Namespace) -> int:
    """Count and tell."""
    from cai.audit.summary import summary, told
    from cai.cli.terminal import tell
    from cai.trail import RunView

    with RunView(arguments.run) as run:
        found = summary(run)
    tell(arguments.json, found, told(found))
    return 0


def handle_why(arguments: argparse.Namespace) -> int:
    """Show a trail."""
    from cai.audit.story import told
    from cai.audit.why import why
    from cai.cli.terminal import tell
    from cai.errors import UserError
    from cai.trail import RunView

    if len(arguments.what) > 2:
        raise UserError("why: expected a run and one ID")
    *run, what = arguments.what
    with RunView(run[0] if run else _run_of(what)) as view:
        found = why(view, what)
    tell(arguments.json, found, told(found, full=arguments.full))
    return 0


def _run_of(what: str) -> Path:
    """Return the run that a path lies in or, for an id, the one run here or in `runs` that knows it."""
    from cai.audit import find
    from cai.errors import CaiError, UserError
    from cai.trail import RunView

    if (Path(what) / "manifest.json").exists():
        raise UserError(f"'{what}' is a run; say what in it, as in `cai audit why {what} pairs.jsonl:1`")
    around = next((p for p in Path(what).absolute().parents if (p / "store.sqlite").exists()), None)
    if around is not None or not what.startswith("b2:"):
        if around is None:
            raise UserError(f"'{what}': of which run? write `cai audit why RUN {what}`")
        return around
    knowing = []
    for folder in sorted({p.parent for pattern in ("*", "runs/*") for p in Path().glob(f"{pattern}/store.sqlite")}):
        with suppress(CaiError), RunView(folder) as run:
            knowing += [folder] if find.ids(run, what) else []
    if len(knowing) != 1:
        told = f"{', '.join(map(str, knowing))} know it" if knowing else "no run here or in runs/ knows it"
        raise UserError(f"'{what}': of which run? {told}; write `cai audit why RUN {what}`")
    return knowing[0]


def handle_query(arguments: argparse.Namespace) -> int:
    """Run a query and show its rows."""
    from cai.audit.views import Views

    with Views(arguments.run) as views:
        return _list(arguments, views) if arguments.list or not arguments.sql else _ask(arguments, views)


def _list(arguments: argparse.Namespace, views: Any) -> int:
    from cai.audit.questions import QUESTIONS
    from cai.audit.views import VIEWS
    from cai.cli.terminal import table, tell

    questions = [{"name": q.name, "asks": q.asks, "sql": q.sql} for q in QUESTIONS.values()]
    tables = [{"name": name, "holds": what, "columns": views.columns(name)} for name, what in VIEWS.items()]
    lines = [table([[q["name"], q["asks"]] for q in questions], head=("question", "asks"))]
    lines += [f"\n{view['name']}: {view['holds']}\n  {', '.join(view['columns'])}" for view in tables]
    tell(arguments.json, {"questions": questions, "views": tables}, lines)
    return 0


def _ask(arguments: argparse.Namespace, views: Any) -> int:
    from cai.audit.questions import QUESTIONS, named
    from cai.audit.views import VIEWS, Views
    from cai.cli.terminal import tell
    from cai.errors import UserError

    if arguments.limit < 1:
        raise UserError("--limit: expected 1 or more")
    given = [p.partition("=") for p in arguments.parameter]
    if any(not sep for _, sep, _ in given):
        raise UserError("-p: expected NAME=VALUE")
    sql = arguments.sql.strip()
    if sql in VIEWS and sql not in QUESTIONS:
        sql = f"SELECT * FROM {sql}"
    question = None if " " in sql else named(sql)
    parameters = {name: value for name, _, value in given}
    missing = [n for n in (question.needs if question else ()) if n != "other" and n not in parameters]
    if missing or (question and "other" in question.needs and not arguments.other):
        wanted = " ".join(f"-p {n}=…" for n in missing) or "--with RUN"
        raise UserError(f"'{arguments.sql}' needs {wanted}")
    if arguments.other:
        with Views(arguments.other) as other:
            views.attach(other)
    found = views.query(question.sql if question else sql, parameters, limit=arguments.limit)
    tell(arguments.json, list(found.dicts()), _answer(found, question, arguments.limit))
    return 0


def _answer(found: Any, question: Any, limit: int) -> Iterator[str]:
    from cai.cli.terminal import table
    from cai.report.words import plural

    if question:
        yield question.asks
    yield table([[_cell(value) for value in row] for row in found.rows], head=found.columns)
    yield plural(len(found.rows), "row") + (", cut at --limit" if len(found.rows) == limit else "")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    text = str(value)
    if isinstance(value, float):
        text = f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return text if len(text) <= 60 else text[:57] + "..."


def handle_verify(arguments: argparse.Namespace) -> int:
    """Check everything; exit 1 where anything was found."""
    from cai.audit.verify import verify
    from cai.cli.terminal import tell
    from cai.errors import UserError
    from cai.trail import RunView

    if arguments.expect is not None and not re.fullmatch("[0-9a-f]{64}", arguments.expect):
        raise UserError(f"--expect '{arguments.expect}': expected a head as verify prints it, 64 hex digits")
    found = verify(RunView(arguments.run).folder, expect=arguments.expect)
    tell(arguments.json, found, _verified(found))
    return 0 if found["ok"] else 1


def _verified(found: dict[str, Any]) -> Iterator[str]:
    from cai.cli.terminal import table
    from cai.report.words import plural

    rows = found["findings"]
    if rows:
        yield table([[f["where"], f["name"], f["what"]] for f in rows[:200]], head=("where", "row", "found"))
        yield plural(len(rows), "finding") + (", the first 200 shown (--json shows all)" if len(rows) > 200 else "")
    else:
        counted = ", ".join(f"{n:,} {name}" for name, n in found["rows"].items())
        yield f"sound: {counted}" + ("" if found["sealed"] else " (not sealed: the run has not ended)")
    yield f"head: {found['head']}"
    yield found["limits"]


def handle_replay(arguments: argparse.Namespace) -> int:
    """Read and fold everything again; exit 1 where anything differs."""
    from cai.audit.replay import replay
    from cai.cli.terminal import tell
    from cai.errors import UserError
    from cai.trail import RunView

    if arguments.live is not None and arguments.live < 1:
        raise UserError("--live: expected 1 or more")
    live = {}
    if arguments.live:
        from cai.pipeline.reask import reask

        live = {"live": reask(arguments.run, arguments.live)}
    with RunView(arguments.run) as run:
        found = replay(run) | live
    tell(arguments.json, found, _replayed(found))
    return 1 if found["differences"] else 0


def _replayed(found: dict[str, Any]) -> Iterator[str]:
    from cai.cli.terminal import table

    yield (
        f"{found['judgments']:,} judgments read again ({found['by_code']:,} by code), "
        f"{found['pairs']:,} pairs folded again: {len(found['differences'])} differences"
    )
    if found["not_replayable"]:
        why = "their principle's text, or the settings they were read under, are no longer the run's"
        yield f"not replayable: {found['not_replayable']:,} ({why})"
    if found["differences"]:
        rows = [[d["where"], d["name"], d["what"]] for d in found["differences"][:200]]
        yield table(rows, head=("where", "name", "difference"))
    if live := found.get("live"):
        yield from _asked_again(live)


def _asked_again(live: dict[str, Any]) -> Iterator[str]:
    from cai.cli.terminal import table

    share = f"{live['agreed'] / live['n']:.1%}, {live['low']:.1%} to {live['high']:.1%}"
    yield (
        f"asked again: {live['n']:,} of {live['n_able']:,} that can be; same verdict {live['agreed']:,} ({share}); "
        f"largest change of p_a {live['largest']:.4f}"
    )
    if rows := live["differences"]:
        told = [[d["decision_id"], *(_verdict(d, when) for when in ("kept", "now"))] for d in rows[:200]]
        yield table(told, head=("decision", "kept", "now"))


def _verdict(difference: dict[str, Any], when: str) -> str:
    p_a = difference[f"{when}_p_a"]
    return difference[when] + ("" if p_a is None else f" ({p_a:.3f})")


def handle_compare(arguments: argparse.Namespace) -> int:
    """Compare and tell."""
    from cai.audit.compare import compare, told
    from cai.cli.terminal import tell
    from cai.trail import RunView

    with RunView(arguments.run) as one, RunView(arguments.other) as other:
        found = compare(one, other)
    tell(arguments.json, found, told(found))
    return 0


def handle_export(arguments: argparse.Namespace) -> int:
    """Write and tell the files."""
    from cai.audit.export import export
    from cai.cli.terminal import tell

    found = export(arguments.run, arguments.format, arguments.out)
    tell(arguments.json, found, (f"{n:>9,} rows  {file}" for file, n in found["files"].items()))
    return 0
