"""Many rows a statement.

Python's sqlite3 gives the interpreter lock away and takes it back at every step of a statement, and whoever wants it
back from a busy event loop waits 5 ms. One statement for many rows is one such wait.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

CHUNK = 256
"""Rows a statement; a further width of 16 serves what is left over."""


def insert(connection: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]], *, tail: str = "") -> None:
    """Insert `rows`, all of one length, by `into` (such as `INSERT INTO texts`), with `tail` after the values."""
    at = 0
    for width in (CHUNK, 16, 1):
        while len(rows) - at >= width:
            some = rows[at : at + width]
            connection.execute(_statement(into, len(some[0]), width, tail), [v for row in some for v in row])
            at += width


@lru_cache(maxsize=64)
def _statement(into: str, n_columns: int, n_rows: int, tail: str) -> str:
    row = f"({','.join('?' * n_columns)})"
    return f"{into} VALUES {','.join([row] * n_rows)} {tail}"
