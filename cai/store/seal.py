"""The seal: one hash per row of every table beside the ledger, in a file whose own hash the ledger holds.

Most rows are named by the hash of their content. What is not (when a call was made, which prompts failed, their order)
and what was removed altogether is found by the seal. It is set when a session ends and opened when the next one begins.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from hashlib import blake2b
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


def lines(connection: sqlite3.Connection) -> Iterator[tuple[str, str, str]]:
    """Yield (table, key, hash) of every sealed row, in order of the keys."""
    for table, (key, columns) in TABLES.items():
        for name, *values in connection.execute(f"SELECT {key} AS k, {columns} FROM {table} ORDER BY k"):
            yield table, str(name), blake2b(canon.dumps(values), digest_size=8).hexdigest()


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
                line = f"{table}\t{name}\t{digest}\n".encode()
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
        data = (folder / NAME).read_bytes()
    except OSError as error:
        yield "seal", NAME, f"cannot be read ({error.strerror})"
        return
    if canon.id_of_bytes(data) != seal.digest:
        yield "seal", NAME, "is not the file that the ledger names"
        return
    sealed = {(t, name): digest for t, name, digest in (line.split("\t") for line in data.decode().splitlines())}
    for table, name, digest in lines(connection):
        before = sealed.pop((table, name), None)
        if before is None:
            yield table, name, "was added after the seal"
        elif before != digest:
            yield table, name, "is not what was sealed"
    for table, name in sealed:
        yield table, name, "was removed"
