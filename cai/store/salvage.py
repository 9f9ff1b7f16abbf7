"""Saving what can be read of a damaged store into a new one.

A row is taken over where its content has the id it is filed under: what was altered is left behind like what cannot be
read, and is asked for again when the run goes on. Walks are not taken over, so that every prompt is walked again with
the replies that are left. Decisions keep their order, and their hashes up to the first one that is lost.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

from cai import canon
from cai.engine.model import key_of
from cai.errors import UserError
from cai.manifest import Manifest, RunLock, now
from cai.records import parse
from cai.store import ledger, schema

NAME = "store.sqlite"
_FILES = (f"{NAME}-wal", f"{NAME}-shm", NAME)
_LEAST_ROW_BYTES = 32

_Row = tuple[Any, ...]


def recover(folder: Path) -> dict[str, Any]:
    """Return what was `kept` and `lost` per table, and where the `damaged` store lies now (None: it was sound).

    Raises UserError where the folder holds no store, or belongs to a run at work.
    """
    source = _source(folder)
    lock = RunLock(folder)
    lock.acquire()
    try:
        fresh = folder / "store.recovered"
        fresh.unlink(missing_ok=True)
        schema.create(fresh)
        kept, lost = _copy(source, fresh)
        if source.parent == folder and not any(lost.values()) and not schema.faults(source):
            fresh.unlink()
            return {"run": str(folder), "kept": kept, "lost": lost, "damaged": None}
        damaged = _set_aside(folder) if source.parent == folder else source.parent
        fresh.rename(folder / NAME)
        _note(folder, lost)
    finally:
        lock.release()
    return {"run": str(folder), "kept": kept, "lost": lost, "damaged": str(damaged)}


def _source(folder: Path) -> Path:
    """Return the store to read: the run's, or where an earlier recovery was cut short, the one it had set aside."""
    if (folder / NAME).exists():
        return folder / NAME
    aside = sorted(folder.glob(f"damaged-*/{NAME}"), key=lambda path: path.stat().st_mtime)
    if not aside:
        raise UserError(f"{folder}: no {NAME} here; give the folder of a run")
    return aside[-1]


def _set_aside(folder: Path) -> Path:
    """Move the damaged store out of the way and return its new folder; what it left unwritten goes with it."""
    number = 1
    while (aside := folder / f"damaged-{number}").exists():
        number += 1
    aside.mkdir()
    for name in _FILES:
        with suppress(FileNotFoundError):
            (folder / name).rename(aside / name)
    return aside


def _note(folder: Path, lost: dict[str, int]) -> None:
    """Write into the manifest, where it can be read, that the run is to be gone through again."""
    manifest = Manifest(folder)
    told = ", ".join(f"{n} {table}" for table, n in lost.items() if n) or "nothing"
    change = {"time": now(), "config": [], "files": [f"{NAME} recovered; lost: {told}"]}
    manifest.save(done=None, changes=[*manifest["changes"], change])


def _copy(source: Path, fresh: Path) -> tuple[dict[str, int], dict[str, int]]:
    kept, lost = {}, {}
    with closing(_opened(source)) as old, closing(schema.connect(fresh)) as new:
        n_decisions = _decisions(old)
        for table, (columns, is_sound) in _TABLES.items():
            rows = _Rows(old, table, columns, source.stat().st_size // _LEAST_ROW_BYTES)
            kept[table] = _fill(new, table, (row for row in rows if rows.note(is_sound(row))))
            lost[table] = rows.n_unsound + rows.n_unreadable
        lost["ledger"] = max(lost["ledger"], n_decisions - kept["ledger"])
        if not lost["prompts"]:
            _keep_mark(old, new)
    return kept, lost


def _opened(source: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(f"{source.resolve().as_uri()}?mode=ro", uri=True)
    connection.text_factory = lambda raw: raw.decode("utf-8", "replace")  # an altered byte then changes the id
    return connection


def _decisions(old: sqlite3.Connection) -> int:
    """Return how many decisions the ledger's head counts, or 0 where that cannot be read."""
    try:
        return ledger.head(old).count
    except (sqlite3.DatabaseError, KeyError, ValueError):
        return 0


def _keep_mark(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    """Take over which prompts were read; without it they are read again."""
    with suppress(sqlite3.DatabaseError):
        row = old.execute("SELECT key, value FROM meta WHERE key = 'prompts_id'").fetchone()
        if row:
            new.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", row)


def _fill(new: sqlite3.Connection, table: str, rows: Iterator[_Row]) -> int:
    """Put rows into the new store and return how many there are then."""
    new.execute("BEGIN IMMEDIATE")
    if table == "ledger":
        ledger.append(new, (ledger.Entry(id_, tag, subject, body.encode()) for id_, tag, subject, body in rows))
    else:
        for row in rows:
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({', '.join('?' * len(row))})", row)
    new.execute("COMMIT")
    return int(new.execute(f"SELECT count(*) FROM {table}").fetchone()[0])


class _Rows:
    """The rows of a table that can be read, in order. Behind a page that cannot, rows are tried one by one."""

    def __init__(self, connection: sqlite3.Connection, table: str, columns: str, most: int) -> None:
        self._connection, self._most = connection, most
        self._select = f"SELECT rowid, {columns} FROM {table} NOT INDEXED WHERE rowid"
        self._table = table
        self.n_unsound = self.n_unreadable = 0

    def __iter__(self) -> Iterator[_Row]:
        last, top = -1, self._top()
        while last < top:
            try:
                for rowid, *row in self._connection.execute(f"{self._select} > ? ORDER BY rowid", (last,)):
                    yield tuple(row)
                    last = rowid
                return
            except sqlite3.DatabaseError:
                last += 1
                while last <= top and (row := self._one(last)) is None:
                    self.n_unreadable += 1
                    last += 1
                if last <= top:
                    yield row

    def note(self, is_sound: bool) -> bool:
        """Count a row that is not what it is filed as; return `is_sound`."""
        self.n_unsound += not is_sound
        return is_sound

    def _one(self, rowid: int) -> _Row | None:
        try:
            found = self._connection.execute(f"{self._select} = ?", (rowid,)).fetchone()
        except sqlite3.DatabaseError:
            return None
        return tuple(found[1:]) if found else None

    def _top(self) -> int:
        """Return the last row's number, or one that it cannot exceed."""
        try:
            return int(self._connection.execute(f"SELECT max(rowid) FROM {self._table}").fetchone()[0] or 0)
        except sqlite3.DatabaseError:
            return self._most


def _is_record(id_: Any, tag: Any, body: Any) -> bool:
    try:
        return bool(parse(tag, body).id == id_)
    except (KeyError, ValueError, TypeError):
        return False


def _is_text(row: _Row) -> bool:
    id_, text = row
    return isinstance(text, str) and canon.text_id(text) == id_


def _is_call(row: _Row) -> bool:
    key, _, _, request, reply, reply_id, *_ = row
    both = isinstance(request, str) and isinstance(reply, str)
    return both and key_of(request.encode()) == key and canon.id_of_bytes(reply.encode()) == reply_id


def _is_prompt(row: _Row) -> bool:
    position, prompt_id, side = row
    return isinstance(position, int) and str(prompt_id).startswith(canon.ID_PREFIX) and side in ("train", "held_out")


def _is_decision(row: _Row) -> bool:
    id_, tag, subject, body = row
    return _is_record(id_, tag, body) and parse(tag, body).subject == subject


_TABLES: dict[str, tuple[str, Callable[[_Row], bool]]] = {
    "texts": ("id, text", _is_text),
    "calls": ("key, kind, model, request, reply, reply_id, circumstances, made_at", _is_call),
    "records": ("id, tag, prompt_id, phase, body", lambda row: _is_record(row[0], row[1], row[4])),
    "prompts": ("position, prompt_id, side", _is_prompt),
    "ledger": ("id, tag, subject, body", _is_decision),
}
