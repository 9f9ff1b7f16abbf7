"""Votes cast elsewhere: items out to another tool, votes back in.

What goes out holds the texts in an order drawn by chance and an opaque token; the token, a keyed hash, is all that says
which arm stood first, and only this run can read it. What comes back is taken in only where its token is one of ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from cai.errors import UserError
from cai.manifest import apart
from cai.records import Order, ReviewItem
from cai.review.desk import Desk, choice_of, reviewer_name
from cai.review.exchange import annotated, argilla, labelstudio, rows
from cai.review.exchange.cast import Cast, LeftOut, Task
from cai.templates import transcript

_WRITERS: dict[str, Callable[[Path, list[Task]], list[str]]] = {
    "label-studio": labelstudio.write,
    "argilla": argilla.write,
    "annotated-pairs": annotated.write,
    "csv": rows.write_csv,
    "jsonl": rows.write_jsonl,
}
_READERS: dict[str, Callable[[Path], Iterator[Cast | LeftOut]]] = {
    "label-studio": labelstudio.read,
    "argilla": argilla.read,
    "annotated-pairs": annotated.read,
    "csv": rows.read_csv,
    "jsonl": rows.read_jsonl,
}
FORMATS = tuple(_WRITERS)


def export(desk: Desk, form: str, out: str | Path, reviewer: str) -> dict[str, Any]:
    """Write the items that wait for a reviewer, in their order and with their sides; return what was written."""
    name = reviewer_name(reviewer)
    tasks = [_task(desk, item, name) for item in desk.waiting(name) if item.queue != "practice"]
    if not tasks:
        raise UserError(f"{desk.run.folder}: nothing waits for '{name}'; `cai review sample` draws items")
    return {"items": len(tasks), "files": _WRITERS[form](apart(Path(out)), tasks)}


def _task(desk: Desk, item: ReviewItem, reviewer: str) -> Task:
    order = desk.sides(reviewer, item, desk.book)
    messages, a, b = desk.texts(item)
    first, second = (a, b) if order == "ab" else (b, a)
    prompt = messages[0].content if len(messages) == 1 else transcript(messages)
    return Task(item.id, desk.token(item.id, order), prompt, first, second, desk.question(item))


def import_votes(desk: Desk, form: str, path: str | Path, reviewer: str | None = None) -> dict[str, Any]:
    """Take in the votes of a file; return how many, and every row that was left out with its reason."""
    file = Path(path)
    if not file.is_file():
        raise UserError(f"{file}: no such file; give what the tool exported")
    tokens = _tokens(desk)
    taken, left_out, seen = 0, [], set[tuple[str, str]]()
    for number, row in enumerate(_READERS[form](file), 1):
        why = row.why if isinstance(row, LeftOut) else _why_not(desk, row, tokens, reviewer, seen)
        if why is not None:
            left_out.append({"row": row.name or str(number), "why": why})
            continue
        assert isinstance(row, Cast)
        item, order = tokens[row.token]
        who = reviewer_name(reviewer or row.reviewer or "")
        seen.add((who, item.id))
        desk.vote(
            who,
            item.id,
            row.side,
            confidence=row.confidence,
            reason=row.reason,
            duration_s=row.duration_s,
            shown=order,
            imported=form,
        )
        taken += 1
    return {"votes": taken, "left_out": left_out}


def _tokens(desk: Desk) -> dict[str, tuple[ReviewItem, Order]]:
    orders: Iterable[Order] = ("ab", "ba")
    return {desk.token(i.id, order): (i, order) for i in desk.book.items.values() for order in orders}


def _why_not(
    desk: Desk, row: Cast, tokens: dict[str, tuple[ReviewItem, Order]], reviewer: str | None, seen: set[tuple[str, str]]
) -> str | None:
    """Return why a row cannot be taken in, or None."""
    if row.token not in tokens:
        return "its token is not of this run"
    item, _ = tokens[row.token]
    if row.item_id and row.item_id != item.id:
        return "its token belongs to another item"
    try:
        who = reviewer_name(reviewer or row.reviewer or "")
        choice_of(row.side, "ab")
    except UserError as error:
        return str(error) if reviewer or row.reviewer else "it does not say who voted; give --as NAME"
    held = desk.book.vote(who, item.id)
    if (who, item.id) in seen or (held is not None and held.choice != "skip"):
        return f"'{who}' has voted on this item already"
    return None


__all__ = ["FORMATS", "export", "import_votes"]
