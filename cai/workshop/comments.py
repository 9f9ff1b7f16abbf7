"""The comments of a YAML file, and what each stands before or beside."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field

import yaml

from cai.yamlfile.tree import LOADER, Node

Path = tuple[str | int, ...]


@dataclass
class Comments:
    """Comments by the path of the key or list item they belong to."""

    before: dict[Path, list[str]] = field(default_factory=dict)
    """Whole lines before it; an empty one stands for a blank line after a comment."""
    beside: dict[Path, str] = field(default_factory=dict)
    """Behind it, on its line."""
    at_top: list[str] = field(default_factory=list)
    """Before the first key, whichever that is."""
    at_end: list[str] = field(default_factory=list)
    """After everything else."""

    @property
    def texts(self) -> list[str]:
        """Every comment, without the blank lines."""
        lines = [line for several in self.before.values() for line in several]
        return [line for line in (*self.at_top, *lines, *self.beside.values(), *self.at_end) if line]


def comments_of(text: str, root: Node) -> Comments:
    """Return the comments of a file whose tree is `root`."""
    found = Comments()
    starts = _starts(root)
    lines = text.lstrip("\ufeff").splitlines()
    for number, column in _marks(text):
        line = lines[number - 1]
        comment, is_alone = line[column:].rstrip(), not line[:column].strip()
        if not is_alone:
            found.beside[_last_on(starts, number)] = comment
            continue
        path = _next_after(starts, number)
        is_first = bool(starts) and number < starts[0][0]
        held = found.at_end if path is None else found.at_top if is_first else found.before.setdefault(path, [])
        held.append(comment)
        if number < len(lines) and not lines[number].strip():
            held.append("")
    return found


def _marks(text: str) -> Iterator[tuple[int, int]]:
    """Yield (line from 1, column from 0) of every `#` that begins a comment."""
    text = text.lstrip("\ufeff")
    spans = [
        (token.start_mark.index, token.end_mark.index)
        for token in yaml.scan(text, Loader=LOADER)
        if isinstance(token, yaml.ScalarToken)
    ]
    begins = [begin for begin, _ in spans]
    offset = 0
    for number, line in enumerate(text.splitlines(keepends=True), start=1):
        for column, character in enumerate(line):
            if character == "#" and (column == 0 or line[column - 1] in " \t"):
                if not _is_inside(offset + column, begins, spans):
                    yield number, column
                    break
        offset += len(line)


def _is_inside(at: int, begins: list[int], spans: list[tuple[int, int]]) -> bool:
    index = bisect_left(begins, at + 1) - 1
    return index >= 0 and spans[index][0] <= at < spans[index][1]


def _starts(root: Node) -> list[tuple[int, Path]]:
    """Return (line, path) of every key and list item in the file's order, the outermost first on each line."""
    found = []
    for path, node in root.walk():
        if path:
            line = node.key_at[0] if node.key_at else node.line
            found.append((line, len(path), path))
    return [(line, path) for line, _, path in sorted(found, key=lambda each: each[:2])]


def _next_after(starts: list[tuple[int, Path]], number: int) -> Path | None:
    return next((path for line, path in starts if line > number), None)


def _last_on(starts: list[tuple[int, Path]], number: int) -> Path:
    """Return the innermost key or item that begins on this line or, for the end of a long value, before it."""
    return [path for line, path in starts if line <= number][-1]
