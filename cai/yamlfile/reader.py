"""Reads YAML into a model: every problem of a file in one go, and the source of every value."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import islice
from pathlib import Path as FilePath
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ValidationError

from cai.yamlfile import messages
from cai.yamlfile.overrides import apply_overrides
from cai.yamlfile.problems import COMMAND_LINE, Finding, Path, Problem, ProblemsError, dotted, quoted
from cai.yamlfile.scalars import Trap
from cai.yamlfile.shapes import about_key, keys_of, nearest, types_at
from cai.yamlfile.tree import MAX_BYTES, Node, Tree, parse

M = TypeVar("M", bound=BaseModel)
_MOST = 200
"""So many of pydantic's errors are put into words and the rest counted; a file with more is no file of this kind."""


@dataclass(frozen=True)
class Loaded(Generic[M]):
    """A file's value together with where each part of it came from."""

    value: M
    """What the file holds, overrides applied."""
    source_name: str
    """The file as the user named it."""
    data: dict[str, Any]
    """The same as plain dicts, lists and scalars, without defaults."""
    root: Node
    """The tree, for positions."""

    def position(self, path: Path | str) -> tuple[int, int]:
        """Return line and column (from 1) of the key or list item at `path`, or of what stands nearest above it.

        A part that came from the command line has no place in the file: (0, 0).
        """
        node, _ = _descend(self.root, _parts(path))
        return node.key_at or (node.line, node.col)

    def where(self, path: Path | str) -> str:
        """Return the source of the value at `path`: `file:line:col`, `command line` or `default`."""
        parts = _parts(path)
        node, depth = _descend(self.root, parts)
        if depth < len(parts):
            return "default"
        line, col = self.position(parts)
        return f"{self.source_name}:{line}:{col}" if line else COMMAND_LINE

    def problem(self, finding: Finding) -> Problem:
        """Return a finding about the loaded value as a problem with its position."""
        return _problem(finding, self.root, self.source_name)

    @property
    def sources(self) -> dict[str, str]:
        """The source of every value of the resolved tree, by dotted path; a list of scalars counts as one value."""
        resolved = self.value.model_dump(mode="json", by_alias=True)
        return {dotted(path): self.where(path) for path in _leaves(resolved, ())}


def load(path: str | FilePath, model: type[M], *, overrides: Sequence[str] = ()) -> Loaded[M]:
    """Return what the file at `path` holds, with `a.b=c` overrides applied. Raises ProblemsError."""
    return read(FilePath(path), model, source_name=str(path), overrides=overrides)


def read(
    source: FilePath | str | bytes, model: type[M], *, source_name: str = "", overrides: Sequence[str] = ()
) -> Loaded[M]:
    """Return what a YAML file (a path) or text (a str or bytes) holds as `model`.

    Models refuse unknown keys and are validated strictly: no value is turned into another kind. A model may have a
    classmethod `findings(data)` that yields a Finding for each of its rules that the plain data breaks; it is asked
    even where single fields are wrong, so that every problem is told at once. Raises ProblemsError.
    """
    name = source_name or (str(source) if isinstance(source, FilePath) else "text")
    tree = parse(_bytes_of(source, name) if isinstance(source, FilePath) else source, name)
    if not tree.is_whole:
        raise ProblemsError(tree.problems)
    root = _mapping(tree, model, name)
    tree.problems += apply_overrides(root, overrides, model)
    return _Reader(model, name, root, tree.problems).loaded()


def _bytes_of(path: FilePath, name: str) -> bytes:
    """Return the file's content, at most a little more than a file may have."""
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 8)
    except FileNotFoundError as error:
        raise ProblemsError([Problem(name, 0, 0, "no such file", _file_hint(path))]) from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        problem = Problem(name, 0, 0, f"cannot be read ({reason.lower()})", "give a readable file")
        raise ProblemsError([problem]) from error


def _file_hint(path: FilePath) -> str:
    if not path.parent.is_dir():
        return f"there is no folder {quoted(str(path.parent), 200)} either; check the path"
    names = [entry.name for entry in islice(path.parent.iterdir(), 1000)]
    near = get_close_matches(path.name, names, n=1)
    return f"did you mean {quoted(str(path.with_name(near[0])), 200)}?" if near else "check the path"


def _mapping(tree: Tree, model: type[BaseModel], name: str) -> Node:
    """Return the root, which must be a mapping."""
    root = tree.root
    if root is not None and root.kind == "map" and not root.is_refused:
        return root
    if root is None or (root.is_plain and not root.text):
        line, col, found = 1, 1, "an empty file"
    else:
        line, col, found = root.line, root.col, messages.describe(root.plain())
    hint = f"begin with '{next(iter(keys_of([model])), 'key')}: '"
    expected = f"found {found}, expected a mapping with the keys {_known([model])}"
    raise ProblemsError([*tree.problems, Problem(name, line, col, expected, hint)])


class _Reader:
    """Collects what the YAML, pydantic and the model's own rules say about one tree."""

    def __init__(self, model: type[BaseModel], name: str, root: Node, problems: Iterable[Problem]) -> None:
        self.model = model
        self.name = name
        self.root = root
        self.problems = list(problems)
        self.refused: set[Path] = set()
        """Paths about which, and below which, everything is said."""
        self.found: set[Path] = set()
        """Paths of the model's own findings, which say more about an unknown key than that it is unknown."""

    def loaded(self) -> Loaded[Any]:
        data = self.root.plain()
        self.take_scalars()
        self.take_findings(data)
        value = self.validate(data)
        self.take_keys()
        if value is None or self.problems:
            raise ProblemsError(self.problems)
        return Loaded(value, self.name, data, self.root)

    def add(self, at: tuple[int, int], message: str, hint: str) -> None:
        self.problems.append(Problem(self.name if at[0] else COMMAND_LINE, *at, message, hint))

    def take_scalars(self) -> None:
        """Report traps, and remember all values that were refused before."""
        for path, node in self.root.walk():
            if node.is_refused:
                self.refused.add(path)
            elif isinstance(node.value, Trap):
                self.refused.add(path)
                found = f"found {quoted(node.text)}{messages.place(path, self.root)}, which {node.value.why}"
                hint = messages.about_trap(node.value, node.text, path, self.model)
                self.add((node.line, node.col), found, hint)

    def take_findings(self, data: dict[str, Any]) -> None:
        """Report what the model's own rules say about the data."""
        for finding in getattr(self.model, "findings", lambda _: ())(data):
            if not self.is_refused(finding.path) and not _descend(self.root, finding.path)[0].is_partial:
                self.problems.append(_problem(finding, self.root, self.name))
                self.found.add(finding.path)

    def take_keys(self) -> None:
        """Report keys that are not certainly text. Keys no model knows have been reported by now."""
        for path, node in self.root.walk():
            if node.key_trap and node.key_at and path not in self.refused:
                found = f"found the key {quoted(str(path[-1]))}{messages.place(path[:-1], self.root)}"
                self.add(node.key_at, f"{found}, which {node.key_trap}", "put the key in quotes")

    def is_refused(self, path: Path) -> bool:
        return any(path[:length] in self.refused for length in range(len(path) + 1))

    def validate(self, data: dict[str, Any]) -> BaseModel | None:
        """Return the model's value, or None with its problems added."""
        try:
            return self.model.model_validate_json(json.dumps(data), strict=True)
        except ValidationError as error:
            errors = error.errors(include_url=False)
        if len(errors) > _MOST:
            self.add((self.root.line, self.root.col), f"found {len(errors)} problems, of which {_MOST} are told", "")
            del errors[_MOST:]
        wrong: dict[Path, list[Any]] = {}
        for error in errors:
            self.take_error(error, wrong)
        for path, group in wrong.items():
            self.add_wrong(path, group)
        return None

    def take_error(self, error: Any, wrong: dict[Path, list[Any]]) -> None:
        """Report one of pydantic's errors, or put it with others about the same value."""
        path = self.path_of(error)
        last = error["loc"][-1] if error["loc"] else ""
        if error["type"] == "missing" and isinstance(last, str):
            self.add_missing(path, last)
        elif error["type"] == "extra_forbidden":
            self.add_unknown(path, is_told=path in self.found or self.is_refused(path[:-1]))
        elif self.is_refused(path):
            return
        elif error["type"] == "missing":
            wrong[path] = [{"type": "too_short", "ctx": {"min_length": int(last) + 1}}]
        elif error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]:
            return  # pydantic counts valid items only; those that are not have been reported
        elif messages.expected(error):
            wrong.setdefault(path, []).append(error)
        else:
            self.add_other(path, error)

    def path_of(self, error: Any) -> Path:
        """Return the path of the value an error is about, without the names pydantic gives to a union's members."""
        path: Path = ()
        node: Node | None = self.root
        for part in error["loc"]:
            child = node.child(part) if node else None
            if child is not None:
                node, path = child, (*path, part)
        return path

    def add_missing(self, path: Path, key: str) -> None:
        node, _ = _descend(self.root, path)
        if node.is_partial or self.is_refused(path):
            return
        known = keys_of(types_at(self.model, path))
        if any(other not in known and nearest(other, known) == key for other in islice(node.value, _MOST)):
            return  # it stands there misspelt, which is told with the misspelt key
        message = f"found no key '{key}'{messages.place(path, self.root)}, expected it here"
        meaning = messages.describe_field((*path, key), self.model)
        self.add((node.line, node.col), message, f"add '{key}: ...'" + (f"; {meaning}" if meaning else ""))

    def add_unknown(self, path: Path, *, is_told: bool) -> None:
        self.refused.add(path)
        if is_told:
            return
        node, _ = _descend(self.root, path)
        types = types_at(self.model, path[:-1])
        found = f"found the unknown key {quoted(str(path[-1]))}{messages.place(path[:-1], self.root)}"
        message = f"{found}, expected one of {_known(types)}"
        self.add(node.key_at or (node.line, node.col), message, about_key(str(path[-1]), types, self.model))

    def add_wrong(self, path: Path, group: list[Any]) -> None:
        """Report a value of a wrong kind or range; what each member of a union expected is joined."""
        node, _ = _descend(self.root, path)
        wanted = " or ".join(dict.fromkeys(messages.expected(error) or "" for error in group))
        value = node.plain()
        choices = "".join(str(error.get("ctx", {}).get("expected", "")) for error in group)
        found = f"found {messages.describe(value)}{messages.place(path, self.root)}, expected {wanted}"
        self.add((node.line, node.col), found, messages.about_type(value, path, self.model, choices))

    def add_other(self, path: Path, error: Any) -> None:
        """Report what a validator of the model said."""
        context = error.get("ctx", {})
        if error["type"] == "finding":
            finding = Finding((*path, *context["path"]), context["message"], context["hint"])
        else:
            finding = Finding(path, str(context.get("error") or error["msg"]))
        self.problems.append(_problem(finding, self.root, self.name))


def _problem(finding: Finding, root: Node, name: str) -> Problem:
    node, _ = _descend(root, finding.path)
    message = finding.message + messages.aside(finding.path, root)
    return Problem(name if node.line else COMMAND_LINE, node.line, node.col, message, finding.hint, finding.severity)


def _known(types: Iterable[Any]) -> str:
    return ", ".join(sorted(keys_of(types))) or "none"


def _parts(path: Path | str) -> Path:
    if not isinstance(path, str):
        return tuple(path)
    return tuple(int(part) if part.isdecimal() else part for part in path.split(".")) if path else ()


def _descend(root: Node, path: Path) -> tuple[Node, int]:
    """Return the deepest node on `path` and how many parts of the path lead to it."""
    node = root
    for depth, part in enumerate(path):
        child = node.child(part)
        if child is None:
            return node, depth
        node = child
    return node, len(path)


def _leaves(value: Any, path: Path) -> Iterator[Path]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, (*path, key))
    elif isinstance(value, list) and any(isinstance(inner, (dict, list)) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, (*path, index))
    else:
        yield path
