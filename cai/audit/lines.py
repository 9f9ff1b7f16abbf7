"""Rows as aligned lines of text."""

from __future__ import annotations

from collections.abc import Iterable, Iterator


def columns(rows: Iterable[dict[str, str]]) -> Iterator[str]:
    """Yield a head and the rows, each column as wide as its longest cell; nothing of no rows."""
    found = list(rows)
    if not found:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in found)) for name in found[0]}
    yield "  " + "  ".join(name.ljust(width) for name, width in widths.items()).rstrip()
    for row in found:
        yield "  " + "  ".join(row[name].ljust(width) for name, width in widths.items()).rstrip()
