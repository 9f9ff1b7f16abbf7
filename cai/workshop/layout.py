"""One way to write a constitution file: `cai constitution fmt`, and what the workshop writes itself.

Texts are folded, keys stand in one order, comments stay where they are. What is written reads back as the same
constitution with the same comments, or it is not written.
"""

from __future__ import annotations

import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cai import yamlfile
from cai.constitution import Constitution
from cai.errors import UserError
from cai.workshop.comments import Comments, comments_of
from cai.yamlfile.tree import parse

WIDTH = 106
"""Columns that a line of a principle may take."""
_WIDTH_ABOVE = 116
"""Columns that a line above the principles may take, as comments do."""
_WIDTH_ALONE = 112
"""Columns that a text may take which then stands on one line, behind its key."""
SCHEMA_LINE = "# yaml-language-server: $schema="
"""What editors read to find the schema; the rest of the line is its path or URL."""
_ORDER = (
    *("schema", "name", "description"),
    *("id", "title", "weight", "domains", "critique", "revision", "compare", "check", "rubric"),
    *("prompt", "a", "b", "response", "expect"),
)
_LAST = ("origin", "tests", "principles")
_QUOTED = ("prompt", "a", "b", "response")
"""Texts of worked examples are always quoted, since they hold anything."""
Path = tuple[str | int, ...]


def formatted(text: str, source_name: str) -> str:
    """Return a constitution's text laid out anew. Raises ProblemsError, and UserError where something would be lost."""
    loaded = yamlfile.read(text, Constitution, source_name=source_name)
    comments = comments_of(text, loaded.root)
    laid_out = write(loaded.data, comments)
    again = yamlfile.read(laid_out, Constitution, source_name=source_name)
    if again.value != loaded.value or sorted(comments_of(laid_out, again.root).texts) != sorted(comments.texts):
        raise UserError(f"{source_name}: cannot be laid out without losing something; it is left as it is")
    return laid_out


def write(data: Mapping[str, Any], comments: Comments | None = None) -> str:
    """Return the YAML of a constitution given as plain dicts, lists and scalars."""
    writer = _Writer(comments or Comments())
    lines = [line.rstrip() for line in writer.document(data)]
    return "\n".join(_single_blanks(lines)).strip("\n") + "\n"


def _single_blanks(lines: Sequence[str]) -> Iterator[str]:
    before = ""
    for line in lines:
        if line or before:
            yield line
        before = line


class _Writer:
    """Writes the tree from the top down, each comment before the key it stood before."""

    def __init__(self, comments: Comments) -> None:
        self._comments = comments

    def document(self, data: Mapping[str, Any]) -> Iterator[str]:
        yield from self._comments.at_top
        for key, value in _ordered(data):
            if key == "principles":
                yield from ("", *self._before((key,), 0), "principles:", "")
                for index, principle in enumerate(value):
                    yield from self._item((key, index), principle, 2)
                    yield ""
            else:
                yield from self._entry((key,), key, value, 0)
        yield from ("", *self._comments.at_end)

    def _before(self, path: Path, indent: int) -> Iterator[str]:
        for comment in self._comments.before.get(path, ()):
            yield " " * indent + comment if comment else ""

    def _item(self, path: Path, value: Any, indent: int) -> Iterator[str]:
        """Yield a list item; a mapping's first key stands beside the dash."""
        yield from self._before(path, indent)
        if not isinstance(value, Mapping):
            yield self._closed(path, " " * indent + f"- {_scalar(value, quote=_pattern_quote)}")
            return
        first = True
        for key, inner in _ordered(value):
            told = list(self._entry((*path, key), key, inner, indent + 2))
            if first:
                at = next(i for i, line in enumerate(told) if line.strip() and not line.lstrip().startswith("#"))
                yield from (line[2:] if line else line for line in told[:at])
                told = [f"{' ' * indent}- {told[at].lstrip()}", *told[at + 1 :]]
                first = False
            yield from told

    def _entry(self, path: Path, key: str, value: Any, indent: int) -> Iterator[str]:
        yield from self._before(path, indent)
        head = " " * indent + f"{key}:"
        if isinstance(value, Mapping):
            yield self._closed(path, head)
            for name, inner in value.items():
                yield from self._entry((*path, name), name, inner, indent + 2)
        elif isinstance(value, list) and not _is_flow(key, value):
            yield self._closed(path, head)
            for index, item in enumerate(value):
                yield from self._item((*path, index), item, indent + 2)
        elif isinstance(value, str):
            yield from self._text(path, head, key, value, indent)
        else:
            yield self._closed(path, f"{head} {_scalar(value)}")

    def _text(self, path: Path, head: str, key: str, value: str, indent: int) -> Iterator[str]:
        one_line = f"{head} {_quoted(value) if key in _QUOTED else _scalar(value)}"
        columns = WIDTH if indent else _WIDTH_ABOVE
        if len(one_line) <= _WIDTH_ALONE and "\n" not in value:
            yield self._closed(path, one_line)
        elif _is_foldable(value):
            yield self._closed(path, f"{head} >-")
            yield from (" " * (indent + 2) + line for line in _folded(value, columns - indent - 2))
        elif _is_literal(value):
            yield self._closed(path, f"{head} |-")
            yield from (" " * (indent + 2) + line if line else "" for line in value.split("\n"))
        else:
            yield self._closed(path, f"{head} {_quoted(value)}")

    def _closed(self, path: Path, line: str) -> str:
        """Return the line with the comment that stood behind it."""
        beside = self._comments.beside.get(path)
        return f"{line}  {beside}" if beside else line


def _ordered(data: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield a mapping's entries in our order; keys without a place of their own stand before the lists at the end."""

    def place(key: str) -> tuple[int, int]:
        if key in _LAST:
            return 2, _LAST.index(key)
        return (0, _ORDER.index(key)) if key in _ORDER else (1, 0)

    yield from sorted(data.items(), key=lambda item: place(item[0]))


def _is_flow(key: str, value: list[Any]) -> bool:
    is_plain = all(not isinstance(item, (Mapping, list)) for item in value)
    return not value or (is_plain and key in ("domains", "json_keys"))


def _scalar(value: Any, quote: Any = None) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_quoted(i) if ',' in str(i) else _scalar(i) for i in value)}]"
    if isinstance(value, str):
        return quote(value) if quote else value if _is_plain(value) else _quoted(value)
    return json.dumps(value)


def _is_plain(value: str) -> bool:
    """Return whether a text means itself without quotes, beside a key and in a flow list."""
    if value != value.strip() or not value.isprintable() or re.search(r"[\[\]{}#\n]|: |:$", value):
        return False
    node = parse(f"k: {value}", "").root
    child = node.child("k") if node is not None else None
    return child is not None and child.kind == "scalar" and isinstance(child.value, str) and child.value == value


def _quoted(value: str) -> str:
    """Return a text in double quotes. JSON's escapes are YAML's; what cannot be seen is escaped too."""
    told = json.dumps(value, ensure_ascii=False)
    return "".join(c if c.isprintable() else f"\\U{ord(c):08X}" for c in told)


def _pattern_quote(value: str) -> str:
    return _quoted(value) if not value.isprintable() else "'" + value.replace("'", "''") + "'"


def _is_foldable(value: str) -> bool:
    return bool(value) and value == " ".join(value.split()) and value.isprintable()


def _folded(value: str, width: int) -> list[str]:
    return textwrap.wrap(value, width, break_long_words=False, break_on_hyphens=False) or [value]


def _is_literal(value: str) -> bool:
    lines = value.split("\n")
    is_seen = all(line.isprintable() and line == line.rstrip() for line in lines)
    return is_seen and not lines[0].startswith(" ") and bool(lines[0]) and bool(lines[-1])


def with_schema_line(text: str, target: str) -> str:
    """Return a file's text with the line that tells editors where its schema is, as its first line."""
    lines = text.split("\n")
    kept = [line for line in lines if not line.startswith(SCHEMA_LINE)]
    return "\n".join([f"{SCHEMA_LINE}{target}", *kept])
