"""From bytes to a tree of nodes that know where they stand, and everything that is wrong with the YAML itself.

The tree is built from PyYAML's events and not from its nodes, because the composer follows aliases silently and
recurses as deep as the file says. What both YAML versions or two readers could understand differently is refused:
duplicate keys, anchors, aliases, merge keys, tags, directives, several documents.
"""

from __future__ import annotations

import codecs
import re
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import yaml

from cai.yamlfile.problems import COMMAND_LINE, SHOWN, Path, Problem, quoted
from cai.yamlfile.scalars import Trap, resolve
from cai.yamlfile.syntax import explain

MAX_BYTES = 1 << 20
"""Larger files are refused: no edited text is that long, and reading it would not be quick."""
MAX_DEPTH = 50
MAX_NODES = 20_000
"""Values and keys in one file."""

LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""libyaml where PyYAML was built with it, which is 15 times faster; only its events are used."""

# Control characters, lone surrogates, and the three line ends that YAML 1.1 knows and 1.2 and editors do not.
_FORBIDDEN = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")


@dataclass(slots=True, eq=False)
class Node:
    """One value of the file."""

    kind: Literal["scalar", "list", "map"]
    line: int
    """From 1; 0 for what came from the command line."""
    col: int
    """From 1; 0 for what came from the command line."""
    value: Any
    """The scalar's value (a Trap where it is one), a list of nodes, or a dict of nodes by key."""
    text: str = ""
    """A scalar's characters as YAML delivers them."""
    is_plain: bool = False
    """Whether a scalar stands without quotes."""
    key_at: tuple[int, int] | None = None
    """Where the key stands that this is the value of; None in a list."""
    key_trap: str = ""
    """What is wrong with that key if it is meant as text; empty where nothing is."""
    is_partial: bool = False
    """Whether a mapping has keys that were refused, so that what it lacks may stand there."""
    is_refused: bool = False
    """Whether a problem with this very value was reported, so that nothing more needs to be said about it."""

    @property
    def source(self) -> str | None:
        """`command line` for an overriding value, None for one in the file."""
        return None if self.line else COMMAND_LINE

    def child(self, part: str | int) -> Node | None:
        """Return the node under a key or index, or None where there is none."""
        if self.kind == "map":
            return self.value.get(part)
        if self.kind == "list" and isinstance(part, int) and 0 <= part < len(self.value):
            return self.value[part]
        return None

    def plain(self) -> Any:
        """Return the value as dicts, lists and scalars; a Trap as its text."""
        if self.kind == "map":
            return {key: node.plain() for key, node in self.value.items()}
        if self.kind == "list":
            return [node.plain() for node in self.value]
        return self.text if isinstance(self.value, Trap) else self.value

    def walk(self, path: Path = ()) -> Iterator[tuple[Path, Node]]:
        """Yield this node and all below it with their paths."""
        yield path, self
        if self.kind == "map":
            for key, node in self.value.items():
                yield from node.walk((*path, key))
        elif self.kind == "list":
            for index, node in enumerate(self.value):
                yield from node.walk((*path, index))


@dataclass
class Tree:
    """What could be read of one file."""

    root: Node | None = None
    """The top node; None for an empty file."""
    problems: list[Problem] = field(default_factory=list)
    is_whole: bool = True
    """Whether the file was read to its end, so that what is missing is really missing."""


def parse(content: bytes | str, file: str) -> Tree:
    """Return the tree of a YAML file and every problem of its YAML. Never raises."""
    text, problems = _decode(content, file)
    if text is None:
        return Tree(problems=problems, is_whole=False)
    builder = _Builder(text, file)
    builder.build()
    return builder.tree


def scalar(text: str, line: int, col: int, *, is_plain: bool) -> Node:
    """Return the node of one scalar."""
    return Node("scalar", line, col, resolve(text) if is_plain else text, text, is_plain)


def _decode(content: bytes | str, file: str) -> tuple[str | None, list[Problem]]:
    """Return the text without its byte order mark, or None and the problems that prevent reading it."""
    raw = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    raw = raw.removeprefix(codecs.BOM_UTF8)
    if len(raw) > MAX_BYTES:
        hint = "split it, or check that it is the right file"
        return None, [Problem(file, 1, 1, f"found more than {MAX_BYTES:,} bytes, expected an edited text", hint)]
    try:
        text = raw.decode("utf-8", "strict" if isinstance(content, bytes) else "surrogatepass")
    except UnicodeDecodeError as error:
        return None, [_not_utf8(raw, error.start, file)]
    lines = _Lines(text)
    problems = [_forbidden(lines, match, file) for match in islice(_FORBIDDEN.finditer(text), SHOWN)]
    return (None, problems) if problems else (text, [])


def _not_utf8(raw: bytes, start: int, file: str) -> Problem:
    line, col = _Lines(raw[:start].decode()).at(start)
    kind = "UTF-16" if raw[:2] in (b"\xff\xfe", b"\xfe\xff") else "another encoding"
    hint = f"this looks like {kind}; save it as UTF-8"
    return Problem(file, line, col, f"found the byte 0x{raw[start]:02x}, expected UTF-8", hint)


def _forbidden(lines: _Lines, match: re.Match[str], file: str) -> Problem:
    line, col = lines.at(match.start())
    found = f"found the character U+{ord(match[0]):04X}, expected printable text"
    return Problem(file, line, col, found, "delete it; editors show it as nothing or as a box")


class _Lines:
    """Line and column of an offset into a text, both from 1, kept inside the text."""

    def __init__(self, text: str) -> None:
        self.length = len(text)
        self.starts = [0, *(match.end() for match in re.finditer(r"\r\n|\r|\n", text))]

    def at(self, offset: int) -> tuple[int, int]:
        offset = max(0, min(offset, self.length))
        line = bisect_right(self.starts, offset)
        return line, offset - self.starts[line - 1] + 1


class _Stop(Exception):
    """Nothing after this point is worth reading."""


class _Builder:
    """Builds the tree from the parser's events, one after the other and without recursion."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.lines = _Lines(text)
        self.tree = Tree()
        self.open: list[Node] = []
        self.keys: list[Node | None] = []
        """For each open node the key that waits for its value."""
        self.n_documents = 0
        self.n_nodes = 0

    def build(self) -> None:
        try:
            for event in yaml.parse(self.text, Loader=LOADER):
                self.take(event)
        except _Stop:
            pass
        except yaml.MarkedYAMLError as error:
            mark, message, hint = explain(error, self.text)
            self.add(mark.index if mark else len(self.text), message, hint)
            self.tree.is_whole = False
        except (yaml.YAMLError, ValueError, OverflowError):
            # PyYAML without libyaml turns \UFFFFFFFF into a character before it looks at it.
            self.add(0, "found a backslash escape of no character", "write the character itself")
            self.tree.is_whole = False

    def add(self, offset: int, message: str, hint: str) -> None:
        self.tree.problems.append(Problem(self.file, *self.lines.at(offset), message, hint))

    def take(self, event: Any) -> None:
        at = event.start_mark.index
        if isinstance(event, yaml.DocumentStartEvent):
            self.start_document(event, at)
        elif isinstance(event, yaml.AliasEvent):
            self.add(at, f"found the alias {quoted('*' + event.anchor)}, expected a value", "write the value out here")
            self.place(Node("scalar", *self.lines.at(at), None, is_refused=True))
        elif isinstance(event, yaml.ScalarEvent):
            self.place(self.scalar(event, at))
        elif isinstance(event, yaml.CollectionStartEvent):
            self.push(event, at)
        elif isinstance(event, yaml.CollectionEndEvent):
            self.open.pop()
            self.keys.pop()

    def start_document(self, event: Any, at: int) -> None:
        self.n_documents += 1
        if event.version or event.tags:
            self.add(at, "found a % directive, expected plain YAML", "delete the line that begins with %")
        if self.n_documents > 1:
            self.add(at, "found a second document, expected one", "delete the line '---', or make it a file of its own")
            raise _Stop

    def scalar(self, event: Any, at: int) -> Node:
        """Return the scalar's node, its unusual YAML reported."""
        is_plain = not event.style and not event.tag
        node = scalar(event.value, *self.lines.at(at), is_plain=is_plain)
        self.refuse_extras(event, at, node)
        if any("\ud800" <= c <= "\udfff" for c in event.value):
            self.add(at, "found an escape of half a character (U+D800 to U+DFFF)", "write the character itself")
            node.value, node.is_refused = None, True
        return node

    def push(self, event: Any, at: int) -> None:
        is_map = isinstance(event, yaml.MappingStartEvent)
        node = Node("map" if is_map else "list", *self.lines.at(at), {} if is_map else [])
        self.refuse_extras(event, at, node)
        self.place(node)
        self.open.append(node)
        self.keys.append(None)
        if len(self.open) > MAX_DEPTH:
            self.add(at, f"found more than {MAX_DEPTH} levels, one inside the other", "look for unclosed brackets")
            self.tree.is_whole = False
            raise _Stop

    def refuse_extras(self, event: Any, at: int, node: Node) -> None:
        """Report an anchor or a tag. A tagged value is dropped, since only its tag would say what it is."""
        if event.anchor:
            anchor = quoted("&" + event.anchor)
            self.add(at, f"found the anchor {anchor}, expected a value", "delete it; if text begins with &, quote it")
        if event.tag:
            tag = quoted(event.tag.replace("tag:yaml.org,2002:", "!!"))
            self.add(at, f"found the tag {tag}, expected a value", "delete the tag; if text begins with !, quote it")
            node.is_refused = True

    def place(self, node: Node) -> None:
        """Put a node where the last open one wants it: root, list item, key or value."""
        self.n_nodes += 1
        if self.n_nodes > MAX_NODES:
            self.add(self.offset(node), f"found more than {MAX_NODES:,} values, expected an edited text", "split it")
            self.tree.is_whole = False
            raise _Stop
        if not self.open:
            self.tree.root = node
        elif self.open[-1].kind == "list":
            self.note_empty(node, "list item", self.offset(node))
            self.open[-1].value.append(node)
        elif self.keys[-1] is None:
            self.keys[-1] = node
        else:
            key, self.keys[-1] = self.keys[-1], None
            self.pair(self.open[-1], key, node)

    def pair(self, mapping: Node, key: Node, node: Node) -> None:
        """Put a value under its key, or say why it cannot be."""
        entries: dict[str, Node] = mapping.value
        if key.is_refused:
            mapping.is_partial = True
        elif key.kind != "scalar":
            self.add(self.offset(key), f"found a {key.kind} as a key, expected text", "put the key in quotes")
            mapping.is_partial = True
        elif key.is_plain and key.text == "<<":
            self.add(self.offset(key), "found the merge key '<<', expected a key", "write the merged keys out here")
            mapping.is_partial = True
        elif key.text in entries:
            line = (entries[key.text].key_at or (0, 0))[0]
            message = f"found the key {quoted(key.text)} a second time, first in line {line}"
            self.add(self.offset(key), message, "keep one of the two")
        else:
            node.key_at, node.key_trap = (key.line, key.col), _key_trap(key)
            self.note_empty(node, f"key {quoted(key.text)}", self.offset(key))
            entries[key.text] = node

    def note_empty(self, node: Node, owner: str, at: int) -> None:
        if node.is_plain and not node.text:
            hint = "write one, or 'null' for none, or delete it"
            self.add(at, f"found nothing after this {owner}, expected a value", hint)
            node.is_refused = True

    def offset(self, node: Node) -> int:
        return self.lines.starts[node.line - 1] + node.col - 1


def _key_trap(key: Node) -> str:
    if not key.is_plain or isinstance(key.value, str):
        return ""
    if isinstance(key.value, Trap):
        return key.value.why
    return "is no text" if key.text else "is empty"
