"""The seal: one hash per row of every table beside the ledger, in a file whose own hash the ledger holds.

Most rows are named by the hash of their content. What is not (when a call was made, which prompts failed, their order)
and what was removed altogether is found by the seal. It is set when a session ends and opened when the next one begins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
from heapq import merge
from itertools import groupby
from operator import itemgetter
from pathlib import Path

from cai import canon
from cai.manifest import writing
from cai.records import Seal
from cai.store import ledger

NAME = "seal.txt"
"""The seal file in the run's folder: lines of table, row key and row hash."""
TABLES = {
    "texts": ("id", "id, text"),
    "calls": ("key", "key, kind, model, request, reply, reply_id, circumstances, made_at"),
    "records": ("id", "id, tag, prompt_id, phase, body"),
    "prompts": ("position", "position, prompt_id, side"),
    "walks": ("phase || ' ' || prompt_id", "phase, prompt_id, inputs, state, detail"),
}
"""(key, columns) of every sealed table."""


def lines(connection: sqlite3.Connection) -> Iterator[tuple[str, bytes, str]]:
    """Yield (table, key, hash) of every sealed row, in order of the keys."""
    for table, (key, columns) in TABLES.items():
        for name, *values in connection.execute(f"SELECT CAST({key} AS BLOB), {columns} FROM {table} ORDER BY {key}"):
            yield table, name, blake2b(canon.dumps(values), digest_size=8).hexdigest()


def latest(connection: sqlite3.Connection) -> Seal | None:
    """Return the last seal event, or None."""
    row = connection.execute(
        "SELECT body FROM ledger WHERE tag <> 'judgment' AND tag = 'seal' ORDER BY seq DESC LIMIT 1"
    ).fetchone()
    return Seal.parse(row[0]) if row else None


def close(connection: sqlite3.Connection, folder: Path) -> None:
    """Seal the store as it stands: write the seal file and append its hash to the ledger."""
    rows = dict.fromkeys(TABLES, 0)
    with writing(folder / NAME) as file:

        def written() -> Iterator[bytes]:
            for table, name, digest in lines(connection):
                rows[table] += 1
                line = b"%b\t%b\t%b\n" % (table.encode(), name, digest.encode())
                file.write(line)
                yield line

        digest = canon.id_of_parts(written())
    last = latest(connection)
    ledger.append_now(connection, [Seal(number=_next(last), rows=rows, digest=digest)])


def open_again(connection: sqlite3.Connection) -> None:
    """Record that a session opens a sealed store for writing; what changes from here on is not yet sealed."""
    last = latest(connection)
    if last is not None and last.digest is not None:
        ledger.append_now(connection, [Seal(number=_next(last), rows={}, digest=None)])


def _next(last: Seal | None) -> int:
    return last.number + 1 if last else 1


def differences(connection: sqlite3.Connection, folder: Path, seal: Seal) -> Iterator[tuple[str, str, str]]:
    """Yield (table, key, what) of every row that is not as sealed; table is `seal` where the file itself is not."""
    try:
        file = (folder / NAME).open("rb")
    except OSError as error:
        yield "seal", NAME, f"cannot be read ({error.strerror})"
        return
    with file:
        if canon.id_of_parts(iter(lambda: file.read(1 << 20), b"")) != seal.digest:
            yield "seal", NAME, "is not the file that the ledger names"
            return
        file.seek(0)
        # Both are in the order of tables and keys, so that neither has to be held.
        sealed = ((t.decode(), name, digest.decode()) for t, name, digest in (line[:-1].split(b"\t") for line in file))
        both = merge(
            ((_place(line), 0, line) for line in sealed), ((_place(line), 1, line) for line in lines(connection))
        )
        for _, same in groupby(both, key=itemgetter(0)):
            found = {which: line for _, which, line in same}
            table, name, _ = found.get(0) or found[1]
            if 0 not in found:
                yield table, name.decode(errors="replace"), "was added after the seal"
            elif 1 not in found:
                yield table, name.decode(errors="replace"), "was removed"
            elif found[0] != found[1]:
                yield table, name.decode(errors="replace"), "is not what was sealed"


_ORDER = {table: number for number, table in enumerate(TABLES)}


def _place(line: tuple[str, bytes, str]) -> tuple[int, int, bytes]:
    """Return where SQLite puts a line: numbers by their size, texts by their bytes."""
    table, name, _ = line
    return _ORDER[table], int(name) if table == "prompts" else 0, name
