"""The ledger: decisions in the order they were made, each row chained to the one before.

Rows are only ever appended, by the run's writer or by a review beside it, always inside one `BEGIN IMMEDIATE`
transaction that reads the head, writes the rows and commits the new head and count. A decision that is already there
(the same id) is not written again, so repeating a walk is harmless.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from cai import canon
from cai.records import Decision, Event, kept, parse
from cai.store import bulk

_LABELLING = "tag IN ('judgment', 'override', 'withdrawal')"


class Entry(NamedTuple):
    """A decision on its way into the ledger."""

    id: str
    tag: str
    subject: str
    body: bytes


class Head(NamedTuple):
    """Where the ledger ends."""

    count: int
    hash: str


def entry(decision: Event) -> Entry:
    """Return the row that `decision` becomes."""
    return Entry(decision.id, decision.tag, decision.subject, decision.body())


def head(connection: sqlite3.Connection) -> Head:
    """Return the ledger's committed end."""
    found = dict(connection.execute("SELECT key, value FROM meta WHERE key IN ('head', 'count')"))
    return Head(int(found["count"]), found["head"])


def append(connection: sqlite3.Connection, entries: Iterable[Entry]) -> Head:
    """Append inside the caller's open transaction and return the new head."""
    count, last = head(connection)
    known = connection.execute
    for item in entries:
        if known("SELECT 1 FROM ledger WHERE id = ?", (item.id,)).fetchone():
            continue
        last = canon.chain(last, item.tag, item.body)
        known(
            "INSERT INTO ledger VALUES (?, ?, ?, ?, ?, ?)",
            (count, item.id, item.tag, item.subject, item.body.decode(), last),
        )
        count += 1
    known("UPDATE meta SET value = ? WHERE key = 'head'", (last,))
    known("UPDATE meta SET value = ? WHERE key = 'count'", (str(count),))
    return Head(count, last)


def append_batch(connection: sqlite3.Connection, entries: Sequence[Entry]) -> None:
    """As `append`, for many at once: one look for those already there, one statement for the rest."""
    count, last = head(connection)
    known = _known(connection, [item.id for item in entries])
    rows = []
    for item in entries:
        if item.id not in known:
            known.add(item.id)
            last = canon.chain(last, item.tag, item.body)
            rows.append((count + len(rows), item.id, item.tag, item.subject, item.body.decode(), last))
    bulk.insert(connection, "INSERT INTO ledger", rows)
    connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (last,))
    connection.execute("UPDATE meta SET value = ? WHERE key = 'count'", (str(count + len(rows)),))


def _known(connection: sqlite3.Connection, ids: Sequence[str]) -> set[str]:
    found: set[str] = set()
    for start in range(0, len(ids), bulk.CHUNK):
        some = ids[start : start + bulk.CHUNK]
        marks = ",".join("?" * len(some))
        found.update(row[0] for row in connection.execute(f"SELECT id FROM ledger WHERE id IN ({marks})", some))
    return found


def append_now(connection: sqlite3.Connection, decisions: Iterable[Event]) -> Head:
    """Append in a transaction of its own: how a review writes while a run may be writing too.

    An iterable that reads the ledger sees it as it stands inside the transaction, what it has yielded included.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        end = append(connection, (entry(d) for d in decisions))
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    return end


def of_comparison(connection: sqlite3.Connection, comparison_id: str) -> list[Decision]:
    """Return the decisions that make a comparison's label, in the order they were made."""
    rows = connection.execute(
        f"SELECT id, tag, body FROM ledger WHERE subject = ? AND {_LABELLING} ORDER BY seq", (comparison_id,)
    )
    return [kept(*row) for row in rows]


def of_comparisons(connection: sqlite3.Connection, comparison_ids: Iterable[str]) -> dict[str, list[Decision]]:
    """As `of_comparison`, for many at once, by comparison; one without decisions is left out."""
    rows = connection.execute(
        "SELECT subject, id, tag, body FROM ledger WHERE subject IN (SELECT value FROM json_each(?)) "
        f"AND {_LABELLING} ORDER BY seq",
        (canon.dumps(list(comparison_ids)).decode(),),
    )
    found: dict[str, list[Decision]] = {}
    for subject, id_, tag, body in rows.fetchall():
        found.setdefault(subject, []).append(kept(id_, tag, body))
    return found


def events(connection: sqlite3.Connection, *, after: int = -1) -> Iterator[tuple[int, Event]]:
    """Yield (seq, event) of everything people did, in order: all that is no judgment, behind row `after`."""
    rows = connection.execute(
        "SELECT seq, tag, body FROM ledger WHERE tag <> 'judgment' AND seq > ? ORDER BY seq", (after,)
    )
    for seq, tag, body in rows:
        yield seq, parse(tag, body)


class Fault(NamedTuple):
    """Something the chain does not bear out."""

    seq: int
    found: str


def verify(connection: sqlite3.Connection, expect: str | None = None) -> Iterator[Fault]:
    """Yield every fault of the ledger: rows changed, removed, swapped or added behind the head.

    `expect` is a head kept elsewhere; it must be the hash of some row. Whoever can rewrite every row and the head
    is not detected without it.
    """
    count, last = head(connection)
    previous, wanted, met = canon.GENESIS, 0, expect in (None, canon.GENESIS)
    for seq, id_, tag, subject, body, hash_ in connection.execute("SELECT * FROM ledger ORDER BY seq"):
        if seq != wanted:
            yield Fault(wanted, f"row {wanted} is missing: the next one found is {seq}")
        computed = canon.chain(previous, tag, body.encode())
        if computed != hash_:
            yield Fault(seq, f"row {seq} does not follow from the row before it")
        yield from _verify_row(seq, id_, tag, subject, body)
        met = met or hash_ == expect
        previous, wanted = hash_, seq + 1
    if (wanted, previous) != (count, last):
        yield Fault(wanted, f"the ledger ends at {wanted} rows, its recorded head says {count}")
    if not met:
        yield Fault(wanted, f"the expected head {expect} is not in this ledger")


def _verify_row(seq: int, id_: str, tag: str, subject: str, body: str) -> Iterator[Fault]:
    try:
        decision = parse(tag, body)
    except (KeyError, ValueError):
        yield Fault(seq, f"row {seq} is not a readable {tag}")
        return
    if decision.id != id_:
        yield Fault(seq, f"row {seq} is filed under another id than its content has")
    if decision.subject != subject:
        yield Fault(seq, f"row {seq} is filed under another comparison than it names")
