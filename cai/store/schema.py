"""The tables of `store.sqlite`. They open in sqlite3, Datasette and DuckDB.

* `texts`    every text sent to a model, once, by content id
* `calls`    every model call: the request (texts by id), the reply and its id, and how and when it came
* `records`  what became of the replies: prompts, responses, critiques, revisions, comparisons, questions
* `prompts`  the order and side (train, held_out) of the prompts
* `walks`    which prompts a phase has finished, and which failed and why
* `ledger`   what was decided, hash-chained: judgments, overrides, and the events of reviews
* `meta`     schema version, head and length of the ledger
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from cai import canon
from cai.durable import sync_folder
from cai.errors import StoreError

VERSION = 1
UNWRITABLE = frozenset({sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN})
"""What SQLite calls a disk or a permission that is in the way; the store itself is sound."""

_DDL = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE texts (id TEXT PRIMARY KEY, text TEXT NOT NULL);
CREATE TABLE calls (
    key TEXT PRIMARY KEY, kind TEXT NOT NULL, model TEXT NOT NULL,
    request TEXT NOT NULL, reply TEXT NOT NULL, reply_id TEXT NOT NULL,
    circumstances TEXT NOT NULL, made_at REAL NOT NULL
);
CREATE TABLE records (id TEXT PRIMARY KEY, tag TEXT NOT NULL, prompt_id TEXT, phase TEXT, body TEXT NOT NULL);
CREATE INDEX records_by_prompt ON records (phase, prompt_id);
CREATE TABLE prompts (position INTEGER PRIMARY KEY, prompt_id TEXT NOT NULL UNIQUE, side TEXT NOT NULL);
CREATE TABLE walks (
    phase TEXT NOT NULL, prompt_id TEXT NOT NULL, inputs TEXT NOT NULL, state TEXT NOT NULL, detail TEXT,
    PRIMARY KEY (phase, prompt_id)
) WITHOUT ROWID;
CREATE TABLE ledger (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tag TEXT NOT NULL, subject TEXT NOT NULL,
    body TEXT NOT NULL, hash TEXT NOT NULL
);
CREATE INDEX ledger_by_subject ON ledger (subject);
CREATE INDEX ledger_of_people ON ledger (seq) WHERE tag <> 'judgment';
INSERT INTO meta VALUES ('schema', '{VERSION}'), ('head', '{canon.GENESIS}'), ('count', '0');
"""


def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
    """Return a connection to an existing store. Raises StoreError where it is missing, damaged or of another schema."""
    if not path.exists():
        raise StoreError(f"{path}: no store here; give the folder of a run")
    mode, connection = "ro" if readonly else "rw", None
    try:
        connection = sqlite3.connect(f"{path.resolve().as_uri()}?mode={mode}", uri=True, check_same_thread=False)
        connection.isolation_level = None
        connection.execute("PRAGMA busy_timeout = 30000")
        if not readonly:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
        found = connection.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
    except sqlite3.DatabaseError as error:
        if connection is not None:
            connection.close()
        if error.sqlite_errorcode & 0xFF in UNWRITABLE:
            raise StoreError(f"{path}: cannot be used ({error}); free space or mend permissions") from error
        raise StoreError(
            f"{path}: not a readable store ({error}); save what can be read with: cai recover {path.parent}"
        ) from error
    if found is None or int(found[0]) != VERSION:
        connection.close()
        version = "none" if found is None else found[0]
        raise StoreError(
            f"{path}: found schema {version}, expected {VERSION}; open it with the version of cai that wrote it"
        )
    return connection


def faults(path: Path) -> list[str]:
    """Return what SQLite finds wrong with the pages and indexes of a store; empty where they fit together."""
    try:
        with closing(connect(path, readonly=True)) as connection:
            found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(5)")]
    except (sqlite3.DatabaseError, StoreError) as error:
        return [str(error)]
    return [] if found == ["ok"] else found


def check(path: Path) -> None:
    """Raise StoreError where a store is damaged."""
    if found := faults(path):
        raise damaged(path, found[0])


def damaged(path: Path, what: str) -> StoreError:
    """Return the error that tells of a damaged store and the way out."""
    said = " ".join(what.split())
    return StoreError(f"{path}: the store is damaged ({said}); save what can be read with: cai recover {path.parent}")


def create(path: Path) -> None:
    """Make an empty store at `path`; one that exists is left as it is. A creation cut short leaves nothing behind."""
    if path.exists():
        return
    fresh = path.with_suffix(".creating")
    fresh.unlink(missing_ok=True)
    try:
        with closing(sqlite3.connect(fresh)) as connection:
            connection.executescript("PRAGMA synchronous = FULL;" + _DDL)
        fresh.rename(path)
        sync_folder(path.parent)
    except sqlite3.OperationalError as error:
        fresh.unlink(missing_ok=True)
        raise StoreError(f"{path}: cannot be written ({error}); free space or mend permissions") from error
