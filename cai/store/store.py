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
from pathlib import Path
from typing import Any, NamedTuple

from cai import canon
from cai.engine.model import Reply
from cai.errors import StoreError
from cai.records import Decision, Prompt, Record, parse
from cai.store import ledger, schema

_BATCH_ROWS = 4000
_KNOWN_TEXTS = 50_000

_STATEMENTS = {
    # Forgetting comes before keeping: within a batch a prompt is never walked twice.
    "clear_prompts": "DELETE FROM prompts",
    "supersede": "UPDATE records SET phase = phase || ' (superseded)' WHERE phase = ? AND prompt_id = ?",
    "texts": "INSERT OR IGNORE INTO texts VALUES (?, ?)",
    "calls": "INSERT OR IGNORE INTO calls VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    "records": "INSERT INTO records VALUES (?, ?, ?, ?, ?) ON CONFLICT (id) DO UPDATE SET phase = excluded.phase",
    "prompts": "INSERT OR REPLACE INTO prompts VALUES (?, ?, ?)",
    "walks": "INSERT OR REPLACE INTO walks VALUES (?, ?, ?, ?, ?)",
    "meta": "INSERT OR REPLACE INTO meta VALUES (?, ?)",
}


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

    def __init__(self, path: Path) -> None:
        schema.create(path)
        self.path = path
        self._reader = schema.connect(path, readonly=False)
        self._queue: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self._error: Exception | None = None
        self._texts: OrderedDict[str, None] = OrderedDict()
        self._thread = threading.Thread(target=self._write_until_closed, name="store-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Commit what was put and stop the writer. Raises StoreError if anything could not be written."""
        if self._thread.is_alive():
            self._queue.put(("close", None))
            self._thread.join()
        self._reader.close()
        if self._error:
            raise self._store_error()

    def put_text(self, text_id: str, text: str) -> None:
        """Keep a text; one that was put lately is not put again."""
        if text_id in self._texts:
            return
        self._texts[text_id] = None
        if len(self._texts) > _KNOWN_TEXTS:
            self._texts.popitem(last=False)
        self._put("texts", (text_id, text))

    def put_call(self, key: str, description: dict[str, Any], reply: Reply) -> str:
        """Keep a call and return the id of its reply."""
        content = canon.dumps(reply.content())
        reply_id = canon.id_of_bytes(content)
        request, how = canon.dumps(description).decode(), canon.dumps(reply.circumstances()).decode()
        row = (key, description["kind"], description["model"], request, content.decode(), reply_id, how, time.time())
        self._put("calls", row)
        return reply_id

    def put_record(self, record: Record, *, prompt_id: str | None = None, phase: str | None = None) -> None:
        """Keep a record under the prompt and phase it belongs to."""
        self._put("records", (record.id, record.tag, prompt_id, phase, record.body().decode()))

    def put_prompt(self, position: int, prompt: Prompt, side: str) -> None:
        """Keep a prompt, its place in the order and its side."""
        self.put_record(prompt, prompt_id=prompt.id)
        self._put("prompts", (position, prompt.id, side))

    def clear_prompts(self) -> None:
        """Forget which prompts the run walks; their records stay."""
        self._put("clear_prompts", ())

    def supersede(self, phase: str, prompt_id: str) -> None:
        """Set aside what an earlier walk of this prompt wrote in this phase, before a walk with other inputs."""
        self._put("supersede", (phase, prompt_id))

    def put_decisions(self, decisions: Iterable[Decision]) -> None:
        """Append decisions to the ledger."""
        for decision in decisions:
            self._put("ledger", ledger.entry(decision))

    def put_walk(self, phase: str, prompt_id: str, inputs: str, state: str, detail: str | None = None) -> None:
        """Mark a prompt's walk through a phase as `done` or `failed`."""
        self._put("walks", (phase, prompt_id, inputs, state, detail))

    def put_meta(self, key: str, value: str) -> None:
        """Keep one fact about the run."""
        self._put("meta", (key, value))

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
        if self._error:
            raise self._store_error()
        self._queue.put((table, row))

    def _store_error(self) -> StoreError:
        size = self.path.stat().st_size if self.path.exists() else 0
        return StoreError(
            f"{self.path} ({size:,} bytes): cannot write ({self._error}); free space or mend permissions, then run "
            "the same command again: everything acknowledged is kept"
        )

    # -- the writer thread -------------------------------------------------------------------------------------------

    def _write_until_closed(self) -> None:
        connection = schema.connect(self.path)
        closing = False
        while not closing:
            items = [self._queue.get()]
            while len(items) < _BATCH_ROWS:
                try:
                    items.append(self._queue.get_nowait())
                except queue.Empty:
                    break
            closing = any(table == "close" for table, _ in items)
            if not self._error:
                try:
                    _commit(connection, items)
                except Exception as error:  # noqa: BLE001 - handed to whoever waits or puts next
                    self._error = error
            self._answer(items)
        connection.close()

    def _answer(self, items: Sequence[tuple[str, Any]]) -> None:
        for table, row in items:
            if table == "ack":
                loop, future = row
                loop.call_soon_threadsafe(_resolve, future, self._store_error() if self._error else None)
            elif table == "event":
                row.set()

    # -- reading -----------------------------------------------------------------------------------------------------

    def replies(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return what was answered before to those of `keys`."""
        return find_replies(self._reader, keys)

    def walk_states(self, phase: str) -> dict[str, tuple[str, str]]:
        """Return {prompt id: (inputs, state)} of a phase."""
        rows = self._reader.execute("SELECT prompt_id, inputs, state FROM walks WHERE phase = ?", (phase,))
        return {prompt_id: (inputs, state) for prompt_id, inputs, state in rows}

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


def _commit(connection: sqlite3.Connection, items: Sequence[tuple[str, Any]]) -> None:
    rows: dict[str, list[Any]] = {}
    for table, row in items:
        rows.setdefault(table, []).append(row)
    work = [table for table in (*_STATEMENTS, "ledger") if table in rows]
    if not work:
        return
    connection.execute("BEGIN IMMEDIATE")
    try:
        for table in work:
            if table == "ledger":
                ledger.append(connection, rows[table])
            else:
                connection.executemany(_STATEMENTS[table], rows[table])
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _resolve(future: asyncio.Future[None], error: Exception | None) -> None:
    if future.done():
        return
    if error:
        future.set_exception(error)
    else:
        future.set_result(None)
