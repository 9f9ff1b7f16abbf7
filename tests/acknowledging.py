"""A program that keeps rows without end and says the number of each once it is acknowledged."""

from __future__ import annotations

import sqlite3
import sys
from itertools import count
from pathlib import Path

from cai.durable import make_folder
from cai.records import Judgment, Message, Prompt
from cai.store import schema
from cai.store.store import Store

WORDS = 4000
"""Words of a prompt: after some hundred, SQLite moves its log into the file."""


def a_prompt(n: int) -> Prompt:
    """Return the prompt of row `n`."""
    return Prompt(messages=(Message(role="user", content=f"{n} " * WORDS),))


def a_judgment(n: int) -> Judgment:
    """Return the decision of row `n`."""
    return Judgment(
        comparison_id=f"c{n}", question_id="q", order="ab", call_key=None, reply_id=None, verdict="a", p_a=1.0
    )


def main(path: str, first: str, synchronous: str) -> None:
    """Keep rows in the store at `path` from number `first` on, until killed."""
    _ask_for(synchronous)
    make_folder(Path(path).parent)
    store = Store(Path(path))
    for n in count(int(first)):
        store.put_prompt(n, a_prompt(n), "train")
        store.put_decisions([a_judgment(n)])
        store.put_walk("walk", str(n), "inputs", "done")
        store.flush()
        print(n, flush=True)


def _ask_for(synchronous: str) -> None:
    real = schema.connect

    def connect(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
        connection = real(path, readonly=readonly)
        if synchronous != "as it is":
            connection.execute(f"PRAGMA synchronous = {synchronous}")
        return connection

    schema.connect = connect  # type: ignore[assignment]


if __name__ == "__main__":
    main(*sys.argv[1:])
