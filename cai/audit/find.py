"""From what somebody has in hand to what it names: an id, the beginning of one, a line of a file, a checkpoint."""

from __future__ import annotations

from cai.errors import UserError
from cai.trail import RunView

_PREFIX = "b2:"


def ids(run: RunView, start: str, *tags: str, limit: int = 6) -> list[tuple[str, str]]:
    """Return (tag, id) of records and events (of these kinds, if any are given) whose id begins so, at most `limit`."""
    wanted = start if start.startswith(_PREFIX) else _PREFIX + start
    found: list[tuple[str, str]] = []
    kinds = f"AND tag IN ({','.join('?' * len(tags))})" if tags else ""
    for table in ("records", "ledger"):
        rows = run.connection.execute(
            f"SELECT tag, id FROM {table} WHERE id >= ? AND id < ? {kinds} ORDER BY id LIMIT ?",
            (wanted, wanted + "~", *tags, limit),
        )
        found += rows.fetchall()
    return found


def one(run: RunView, start: str, *tags: str) -> tuple[str, str]:
    """Return the (tag, id) that begins so, of these kinds if any are given. Raises UserError for none or several."""
    found = ids(run, start, *tags)
    if not found:
        kinds = " or ".join(tags) or "record or decision"
        raise UserError(
            f"'{start}': no {kinds} of {run.folder} has an id that begins so; "
            f"`cai audit query {run.folder} pairs` lists pairs, and so on"
        )
    if len(found) > 1:
        told = ", ".join(f"{id_} ({tag})" for tag, id_ in found[:5])
        raise UserError(f"'{start}': several begin so: {told}; give more of the id")
    return found[0]


def pair_id(run: RunView, start: str) -> str:
    """Return the id of the comparison that begins so. Raises UserError."""
    return one(run, start, "comparison")[1]
