"""The run's store: one writer thread that commits in batches, and reads by key.

`put` hands rows over; `await store.committed()` returns once everything put before it is on disk. A batch is one
transaction, so a kill leaves either all of it or none, and a row is only acted upon as done after its commit.
"""

from __future__ import annotations

import asyncio
import queue
import sqlite3
import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import disk_usage
from typing import Any, NamedTuple

from cai import canon
from cai.engine.model import Reply
from cai.errors import StoreError
from cai.records import Event, Prompt, Record, parse
from cai.store import bulk, ledger, schema
from cai.templates import Turn

_BATCH_ROWS = 4000
_KNOWN_TEXTS = 20_000

READ = "reading prompts"
"""Under this phase stand the rows of prompt files that were refused, by place instead of prompt."""

_FORGETTING = {
    # Forgetting comes before keeping: within a batch a prompt is never walked twice through a phase, and what a walk
    # wrote before and writes again gets its phase back.
    "clear_prompts": "DELETE FROM prompts",
    "clear_refused": "DELETE FROM walks WHERE phase = ?",
    "supersede": "UPDATE records SET phase = phase || ' (superseded)' WHERE phase = ? AND prompt_id = ?",
}
_KEEPING = {
    "texts": ("INSERT OR IGNORE INTO texts", ""),
    "calls": ("INSERT OR IGNORE INTO calls", ""),
    "records": ("INSERT INTO records", "ON CONFLICT (id) DO UPDATE SET phase = excluded.phase"),
    "prompts": ("INSERT OR REPLACE INTO prompts", ""),
    "walks": ("INSERT OR REPLACE INTO walks", ""),
    "meta": ("INSERT OR REPLACE INTO meta", ""),
}


_Parcel = list[tuple[str, list[Any]]]
"""Rows by table that go into one transaction."""


class Kept(NamedTuple):
    """A reply as it lies in a store."""

    content: str
    circumstances: str
    reply_id: str

    def reply(self) -> Reply:
        """Return the reply, marked as reused."""
        return Reply(**canon.loads(self.content), **canon.loads(self.circumstances), reused=True)


class Store:
    """One run's SQLite file, opened for writing by the run that owns it."""

    is_final = False
    """Whether nobody is asked any more, so that the last reply kept to a request is the answer, of whatever use."""

    def __init__(self, path: Path) -> None:
        schema.create(path)
        self.path = path
        self._reader = schema.connect(path, readonly=False)
        self._queue: queue.SimpleQueue[_Parcel] = queue.SimpleQueue()
        self._parcel: _Parcel | None = None
        self._error: Exception | None = None
        self.expects: int | None = None
        """About how many bytes more the run will keep at most; None where nobody has reckoned."""
        self._texts: OrderedDict[str, None] = OrderedDict()
        self._thread = threading.Thread(target=self._write_until_closed, name="store-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what was put and stop the writer. Raises StoreError if anything could not be written."""
        if self._thread.is_alive():
            self._queue.put([("close", [])])
            self._thread.join()
        self._reader.close()
        if self._error:
            raise self._store_error()

    def put_texts(self, turns: Iterable[Turn]) -> None:
        """Keep the texts of turns; one that was put lately is not put again."""
        known, rows = self._texts, []
        for turn in turns:
            if turn.text_id not in known:
                known[turn.text_id] = None
                rows.append((turn.text_id, turn.text))
        while len(known) > _KNOWN_TEXTS:
            known.popitem(last=False)
        if rows:
            self._put_all("texts", rows)

    def put_call(self, key: str, description: dict[str, Any], reply: Reply) -> str:
        """Keep a call and return the id of its reply."""
        request = canon.dumps(description)
        return self.put_calls(description["kind"], description["model"], [(key, request, reply)])[0]

    def put_calls(self, kind: str, model: str, calls: Sequence[tuple[str, bytes, Reply]]) -> list[str]:
        """Keep calls of one kind, each (key, canonical request, reply), and return the ids of their replies."""
        now, rows, how_before, how = time.time(), [], None, ""
        for key, request, reply in calls:
            content = canon.dumps(reply.content())
            if (circumstances := reply.circumstances()) != how_before:  # those of one batch agree
                how_before, how = circumstances, canon.dumps(circumstances).decode()
            reply_id = canon.id_of_bytes(content)
            rows.append((key, kind, model, request.decode(), content.decode(), reply_id, how, now))
        self._put_all("calls", rows)
        return [row[5] for row in rows]

    def put_record(self, record: Record, *, prompt_id: str | None = None, phase: str | None = None) -> None:
        """Keep a record under the prompt and phase it belongs to."""
        self._put("records", (record.id, record.tag, prompt_id, phase, record.body().decode()))

    def put_prompt(self, position: int, prompt: Prompt, side: str) -> None:
        """Keep a prompt, its place in the order and its side."""
        self.put_record(prompt, prompt_id=prompt.id)
        self._put("prompts", (position, prompt.id, side))

    def clear_prompts(self) -> None:
        """Forget which prompts the run walks and which rows were refused; their records stay."""
        self._put("clear_prompts", ())
        self._put("clear_refused", (READ,))

    def supersede(self, phase: str, prompt_id: str) -> None:
        """Set aside what a walk of this prompt with other inputs wrote in this phase, as a new one is kept."""
        self._put("supersede", (phase, prompt_id))

    def put_decisions(self, decisions: Iterable[Event]) -> None:
        """Append decisions to the ledger."""
        self._put_all("ledger", [ledger.entry(d) for d in decisions])

    def put_walk(self, phase: str, prompt_id: str, inputs: str, state: str, detail: str | None = None) -> None:
        """Mark a prompt's walk through a phase as `done` or `failed`."""
        self._put("walks", (phase, prompt_id, inputs, state, detail))

    def put_meta(self, key: str, value: str) -> None:
        """Keep one fact about the run."""
        self._put("meta", (key, value))

    @contextmanager
    def together(self) -> Iterator[None]:
        """Put what the block puts in one transaction: all of it is kept, or none. The block must not await."""
        self._parcel = parcel = []
        try:
            yield
        finally:
            self._parcel = None
        self._send(parcel)

    async def committed(self) -> None:
        """Return once everything put so far is on disk."""
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        self._put("ack", (loop, done))
        await done

    def flush(self) -> None:
        """Block until everything put so far is on disk."""
        done = threading.Event()
        self._put("event", done)
        done.wait()
        if self._error:
            raise self._store_error()

    def _put(self, table: str, row: Any) -> None:
        self._put_all(table, [row])

    def _put_all(self, table: str, rows: list[Any]) -> None:
        if self._parcel is not None:
            self._parcel.append((table, rows))
        else:
            self._send([(table, rows)])

    def _send(self, parcel: _Parcel) -> None:
        if self._error:
            raise self._store_error()
        self._queue.put(parcel)

    def _store_error(self) -> StoreError:
        more = "" if self.expects is None else f" and the run may need {self.expects:,} more"
        return StoreError(
            f"{self.path}: cannot write ({self._error}); {disk_usage(self.path.parent).free:,} bytes are free{more}; "
            "free space or mend permissions, then run the same command again: everything acknowledged is kept"
        )

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _write_until_closed(self) -> None:
        connection = schema.connect(self.path)
        closing = False
        while not closing:
            items = list(self._queue.get())
            n_rows = _n_rows(items)
            while n_rows < _BATCH_ROWS:
                try:
                    parcel = self._queue.get_nowait()
                except queue.Empty:
                    break
                items += parcel
                n_rows += _n_rows(parcel)
            closing = any(table == "close" for table, _ in items)
            if not self._error:
                try:
                    _commit(connection, items)
                except Exception as error:  # noqa: BLE001 - handed to whoever waits or puts next
                    self._error = error
            self._answer(items)
        connection.close()

    def _answer(self, items: Sequence[tuple[str, list[Any]]]) -> None:
        waiting: dict[asyncio.AbstractEventLoop, list[asyncio.Future[None]]] = {}
        for table, rows in items:
            if table == "ack":
                loop, future = rows[0]
                waiting.setdefault(loop, []).append(future)
            elif table == "event":
                rows[0].set()
        for loop, futures in waiting.items():
            loop.call_soon_threadsafe(_resolve, futures, self._store_error() if self._error else None)

    # -- reading -----------------------------------------------------------------------------------------------------

    def replies(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what was answered before to those of `keys`."""
        found = find_replies(self._reader, keys)
        for key, kept in found.items():
            if canon.id_of_bytes(kept.content.encode()) != kept.reply_id:
                raise schema.damaged(self.path, f"the reply to {key} is not the one that came")
        return found

    def walk_state(self, phase: str, prompt_id: str) -> tuple[str, str] | None:
        """Return (inputs, state) of a prompt's walk through a phase, or None."""
        return self._reader.execute(
            "SELECT inputs, state FROM walks WHERE phase = ? AND prompt_id = ?", (phase, prompt_id)
        ).fetchone()

    def n_failed(self, phase: str, inputs: str) -> int:
        """Return how many prompts have failed in a phase with these inputs."""
        row = self._reader.execute(
            "SELECT count(*) FROM walks WHERE phase = ? AND inputs = ? AND state = 'failed'", (phase, inputs)
        ).fetchone()
        return int(row[0])

    def prompts(self, side: str) -> Iterator[Prompt]:
        """Yield the prompts of a side in order, without holding them all."""
        last = -1
        while rows := self._reader.execute(
            "SELECT position, body FROM prompts JOIN records ON records.id = prompts.prompt_id "
            "WHERE side = ? AND position > ? ORDER BY position LIMIT 500",
            (side, last),
        ).fetchall():
            for position, body in rows:
                yield parse("prompt", body)
                last = position

    def meta(self, key: str) -> str | None:
        """Return a fact about the run, or None."""
        row = self._reader.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return row[0] if row else None

    @property
    def connection(self) -> sqlite3.Connection:
        """A connection for reading what is committed."""
        return self._reader


def find_replies(connection: sqlite3.Connection, keys: Sequence[str]) -> dict[str, Kept]:
    """Return what a store has been answered to those of `keys` that it knows."""
    marks = ",".join("?" * len(keys))
    rows = connection.execute(
        f"SELECT key, reply, circumstances, reply_id FROM calls WHERE key IN ({marks})", tuple(keys)
    )
    return {key: Kept(reply, circumstances, reply_id) for key, reply, circumstances, reply_id in rows}


def _commit(connection: sqlite3.Connection, items: Sequence[tuple[str, list[Any]]]) -> None:
    rows: dict[str, list[Any]] = {}
    for table, some in items:
        rows.setdefault(table, []).extend(some)
    if not rows.keys() & {*_FORGETTING, *_KEEPING, "ledger"}:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table, statement in _FORGETTING.items():
            connection.executemany(statement, rows.get(table, ()))
        for table, (into, tail) in _KEEPING.items():
            bulk.insert(connection, into, rows.get(table, ()), tail=tail)
        if entries := rows.get("ledger"):
            ledger.append_batch(connection, entries)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _n_rows(parcel: _Parcel) -> int:
    return sum(len(rows) for _, rows in parcel)


def _resolve(futures: Sequence[asyncio.Future[None]], error: Exception | None) -> None:
    for future in futures:
        if future.done():
            continue
        if error:
            future.set_exception(error)
        else:
            future.set_result(None)
