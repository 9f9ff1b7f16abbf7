"""verify: whether a run is what it was when it was written. Everything found is named.

Checked are the ledger's chain, head and count; the content ids of every text, call, record and decision, and that what
they name is there; the seal over all rows; and that manifest, constitution, templates and pairs fit together.

What it cannot find: a ledger cut back to an earlier head, or a run whose every row, hash, head and seal was written
anew, by somebody who can write the folder. Against that, keep the head elsewhere and give it to `expect`. Nor does it
say that the model really answered so, only that the answer is the one that was kept.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from cai import canon
from cai.errors import CaiError
from cai.manifest import id_of
from cai.pairs import provenance, provenance_path, row
from cai.records import Critique, Judgment, Override, Record, ReviewItem, Revision, Seal, Vote, parse
from cai.store import ledger, schema, seal
from cai.trail import RunView

LIMITS = (
    "verify compares the run with itself: somebody who can write the folder can cut the ledger back to an earlier "
    "head, or write every row, hash, head and seal anew. Keep the head elsewhere (print it, mail it) and verify with "
    "--expect. Checkpoints, the report, logs and the figures a session adds to the manifest are not covered."
)


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that is not as it was written."""

    where: str
    """Table or file."""
    name: str
    """The row or line."""
    what: str
    """What is wrong with it."""


def verify(folder: str | Path, *, expect: str | None = None) -> dict[str, Any]:
    """Return what was checked and everything found: `ok`, `findings`, `head`, `rows`, `sealed`, `limits`."""
    run = RunView(folder)
    connection = schema.connect(run.folder / "store.sqlite", readonly=True)
    # A byte that is no longer UTF-8 must become a finding and not an exception.
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")
    run.__dict__["connection"] = connection
    with run:
        return _verified(run, connection, expect)


def _verified(run: RunView, connection: sqlite3.Connection, expect: str | None) -> dict[str, Any]:
    found: list[Finding] = []
    try:
        for finding in _store(connection, run.folder, expect):
            found.append(finding)
        head, rows = ledger.head(connection).hash, {t: _count(connection, t) for t in (*seal.TABLES, "ledger")}
        is_sealed = _is_sealed(connection)
    except (sqlite3.DatabaseError, KeyError, ValueError) as error:
        found.append(Finding("store.sqlite", "file", f"cannot be read to its end ({error}); restore it from a copy"))
        head, rows, is_sealed = None, {}, False
    else:
        found += _files_or_why_not(run)
    return {
        "run": str(run.folder),
        "ok": not found,
        "findings": [asdict(f) for f in dict.fromkeys(found)],
        "head": head,
        "rows": rows,
        "sealed": is_sealed,
        "limits": LIMITS,
    }


def _files_or_why_not(run: RunView) -> list[Finding]:
    found: list[Finding] = []
    try:
        for finding in _files(run):
            found.append(finding)
    except (CaiError, KeyError, ValueError, TypeError, AttributeError, OSError, sqlite3.DatabaseError) as error:
        found.append(Finding("run", run.folder.name, f"cannot be read back ({type(error).__name__}: {error})"))
    return found


def _is_sealed(connection: sqlite3.Connection) -> bool:
    """Return whether the last session ended and sealed what it left."""
    try:
        last = seal.latest(connection)
    except ValueError:
        return False
    return last is not None and last.digest is not None


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


# -- the store -------------------------------------------------------------------------------------------------------


def _store(connection: sqlite3.Connection, folder: Path, expect: str | None) -> Iterator[Finding]:
    damage = connection.execute("PRAGMA integrity_check(5)").fetchall()
    if damage != [("ok",)]:
        yield from (Finding("store.sqlite", "file", text) for (text,) in damage)
        return
    for fault in ledger.verify(connection, expect):
        yield Finding("ledger", str(fault.seq), fault.found)
    yield from _texts(connection)
    replies = yield from _calls(connection)
    known = yield from _records(connection)
    yield from _decisions(connection, known, replies)
    yield from _prompts(connection, known)
    yield from _sealed(connection, folder)


def _texts(connection: sqlite3.Connection) -> Iterator[Finding]:
    for id_, text in connection.execute("SELECT id, text FROM texts"):
        if canon.text_id(text) != id_:
            yield Finding("texts", id_, "does not have the content its id names")


def _calls(connection: sqlite3.Connection) -> Iterator[Any]:
    """Yield findings; return {call key: reply id}."""
    texts = {id_ for (id_,) in connection.execute("SELECT id FROM texts")}
    replies: dict[str, str] = {}
    for key, kind, model, request, reply, reply_id in connection.execute(
        "SELECT key, kind, model, request, reply, reply_id FROM calls"
    ):
        replies[key] = reply_id
        if canon.id_of_bytes(reply.encode()) != reply_id:
            yield Finding("calls", key, "its reply does not have the content its id names")
        try:
            asked = canon.loads(request)
            fits = canon.content_id("call", asked) == key and (asked["kind"], asked["model"]) == (kind, model)
            missing = [id_ for _, id_ in asked["messages"] if id_ not in texts]
        except (ValueError, KeyError, TypeError):
            fits, missing = False, []
        if not fits:
            yield Finding("calls", key, "its request does not have the content its key names")
        for id_ in missing:
            yield Finding("texts", id_, f"is missing; call {key} was made with it")
    return replies


def _records(connection: sqlite3.Connection) -> Iterator[Any]:
    """Yield findings; return {id: record}."""
    known: dict[str, Record] = {}
    placed: list[tuple[str, str | None, str | None]] = []
    for id_, tag, prompt_id, phase, body in connection.execute("SELECT id, tag, prompt_id, phase, body FROM records"):
        record = _read(tag, body)
        if record is None or record.id != id_:
            yield Finding("records", id_, f"is not the {tag} its id names")
        else:
            known[id_] = record
            placed.append((id_, prompt_id, phase))
    for id_, prompt_id, phase in placed:
        record = known[id_]
        for name in _parents(record):
            if name not in known:
                yield Finding("records", name, f"is missing; {record.tag} {id_} comes from it")
        if not _is_placed(record, prompt_id, phase):
            yield Finding("records", id_, "is filed under another prompt or phase than it names")
    return known


def _read(tag: str, body: str) -> Record | None:
    try:
        return parse(tag, body)
    except (KeyError, ValueError, TypeError):
        return None


def _parents(record: Record) -> list[str]:
    match record.tag:
        case "response":
            names = ("prompt_id",)
        case "comparison":
            names = ("prompt_id", "a_id", "b_id")
        case "critique":
            names = ("answer_id",)
        case "revision":
            names = ("critique_id", "answer_id")
        case _:
            names = ()
    return [getattr(record, name) for name in names]


def _is_placed(record: Record, prompt_id: str | None, phase: str | None) -> bool:
    if record.tag in ("response", "comparison"):
        return prompt_id == record.prompt_id and (phase or "").removesuffix(" (superseded)") == record.phase  # type: ignore[attr-defined]
    return record.tag != "prompt" or prompt_id == record.id


def _decisions(connection: sqlite3.Connection, known: dict[str, Record], replies: dict[str, str]) -> Iterator[Finding]:
    """Yield what the decisions and records name and is not there."""
    for record in known.values():
        key = getattr(record, "call_key", None)
        if isinstance(record, (Critique, Revision)) or record.tag == "response":
            if key is not None and key not in replies:
                yield Finding("calls", key, f"is missing; {record.tag} {record.id} was read from it")
    for seq, tag, body in connection.execute("SELECT seq, tag, body FROM ledger ORDER BY seq"):
        event = _read(tag, body)
        if isinstance(event, Judgment):
            yield from _judgment(event, known, replies)
        elif isinstance(event, (Override, Vote, ReviewItem)):
            is_gold = isinstance(event, ReviewItem) and event.gold is not None or isinstance(event, Vote)
            if event.comparison_id not in known and not is_gold:
                yield Finding("records", event.comparison_id, f"is missing; ledger row {seq} is about it")


def _judgment(event: Judgment, known: dict[str, Record], replies: dict[str, str]) -> Iterator[Finding]:
    for id_ in (event.comparison_id, event.question_id):
        if id_ not in known:
            yield Finding("records", id_, f"is missing; judgment {event.id} names it")
    for reading in (event, *event.parts):
        if reading.call_key is None:
            continue
        if reading.call_key not in replies:
            yield Finding("calls", reading.call_key, f"is missing; judgment {event.id} was read from it")
        elif replies[reading.call_key] != reading.reply_id:
            yield Finding("calls", reading.call_key, f"holds another reply than judgment {event.id} was read from")


def _prompts(connection: sqlite3.Connection, known: dict[str, Record]) -> Iterator[Finding]:
    rows = connection.execute("SELECT position, prompt_id, side FROM prompts ORDER BY position").fetchall()
    for position, prompt_id, _ in rows:
        if prompt_id not in known:
            yield Finding("records", prompt_id, f"is missing; it is prompt {position}")
    mark = connection.execute("SELECT value FROM meta WHERE key = 'prompts_id'").fetchone()
    listed = sorted(rows, key=lambda row: (row[2], row[0]))
    if mark and mark[0] != canon.id_of_parts(f"{side} {id_}\n".encode() for _, id_, side in listed):
        yield Finding("prompts", "order", "is not the list of prompts that the run took in")


def _sealed(connection: sqlite3.Connection, folder: Path) -> Iterator[Finding]:
    try:
        last: Seal | None = seal.latest(connection)
    except ValueError:
        return  # the damaged row is found by the chain
    if last is not None and last.digest is not None:
        for table, name, what in seal.differences(connection, folder, last):
            yield Finding(table, name, what)


# -- the files beside it ---------------------------------------------------------------------------------------------


def _files(run: RunView) -> Iterator[Finding]:
    manifest = run.manifest
    if run.constitution.id != manifest["constitution"]["id"]:
        yield Finding("constitution.yaml", "file", "is not the constitution the manifest names")
    for name, id_ in manifest.get("templates", {}).items():
        if run.templates.ids.get(name) != id_:
            yield Finding("prompts", f"{name}.jinja", "is not the template the manifest names")
    if id_of(run.config_tree) != manifest["config_id"]:
        yield Finding("config.yaml", "file", "is not the config the manifest names")
    done, last = manifest.get("done"), seal.latest(run.connection)
    is_closed = last is not None and last.digest is not None
    if is_closed and not done:
        what = "is missing, though the ledger says that the run ended; restore it, or give the run's command again"
        yield Finding("manifest.json", "done", what)
    if done:
        count, head = done["head"]
        kept = run.connection.execute("SELECT hash FROM ledger WHERE seq = ?", (count - 1,)).fetchone()
        if count and (kept is None or kept[0] != head):
            yield Finding("ledger", str(count - 1), "is not where the manifest says that the run ended")
        opened = last is not None and not is_closed
        for table, n in done.get("rows", {}).items():
            now = _count(run.connection, table)
            if now < n if table == "ledger" or opened else now != n:
                yield Finding(table, "count", f"holds {now:,} rows, the manifest says {n:,}")
        yield from _pairs(run)


def _pairs(run: RunView) -> Iterator[Finding]:
    """Yield every line of the pairs and their provenance that is not what the decisions give."""
    rows, origins = [], []
    for phase in run.phases:
        for end in run.ended(phase):
            if end.admission.pair is not None:
                rows.append(canon.dumps(row(end.admission.pair)))
                origins.append(canon.dumps(provenance(end, end.admission.pair, len(rows))))
    path = run.folder / "pairs.jsonl"
    for file, wanted in ((path, rows), (provenance_path(path), origins)):
        if not file.exists():
            yield Finding(file.name, "file", "is missing; `cai pairs` writes it anew")
            continue
        for number, (one, other) in enumerate(zip_longest(file.read_bytes().splitlines(), wanted), 1):
            if one != other:
                what = "is not what the decisions give; if people decided since, `cai pairs` writes it anew"
                yield Finding(file.name, f"line {number}", what)
