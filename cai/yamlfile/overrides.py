"""`a.b=c` on the command line: values laid over the file's before anything is validated."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel

from cai.yamlfile.problems import COMMAND_LINE, Path, Problem, dotted, quoted
from cai.yamlfile.shapes import about_key, keys_of, types_at
from cai.yamlfile.tree import Node, parse, scalar


def apply_overrides(root: Node, overrides: Sequence[str], model: type[BaseModel]) -> list[Problem]:
    """Lay each `a.b=c` over the tree and return what is wrong with them.

    A value is read as an unquoted YAML scalar, or as a quoted one or a `[list]` or `{mapping}` where it begins like
    one. A list item is named by its index, from 0: `phases.1.samples=4`. Mappings that the file lacks are made.
    """
    problems = []
    for override in overrides:
        wrong = _apply(root, override, model)
        if wrong is not None:
            message, hint = wrong
            problems.append(Problem(COMMAND_LINE, 0, 0, f"{quoted(override, 100)}: {message}", hint))
    return problems


def _apply(root: Node, override: str, model: type[BaseModel]) -> tuple[str, str] | None:
    """Apply one override, or return message and hint."""
    name, equals, text = override.partition("=")
    parts = name.strip().split(".")
    if not equals or not all(parts):
        return "expected a dotted path, '=' and a value", "write it like 'run.seed=1'"
    value = _value(text.strip())
    if isinstance(value, tuple):
        return value
    holder = _holder(root, parts, model)
    return holder if isinstance(holder, tuple) else _put(holder, parts[-1], value)


def _value(text: str) -> Node | tuple[str, str]:
    """Return the value's node, without any place in the file, or message and hint."""
    if not text:
        return "found no value after '='", "write null for none, or '\"\"' for an empty text"
    if text[0] not in "[{\"'":
        return scalar(text, 0, 0, is_plain=True)
    tree = parse(text, COMMAND_LINE)
    if tree.problems or tree.root is None:
        first = tree.problems[0]
        return f"the value cannot be read: {first.message}", first.hint
    for _, node in tree.root.walk():
        node.line = node.col = 0
        node.key_at = None
    return tree.root


def _holder(root: Node, parts: list[str], model: type[BaseModel]) -> Node | tuple[str, str]:
    """Return the node that the last part stands in, made where the file lacks it, or message and hint."""
    node, path = root, ()
    for depth, part in enumerate(parts):
        wrong = _wrong_part(node, part, path, model)
        if wrong is not None:
            return wrong
        path = (*path, int(part) if node.kind == "list" else part)
        if depth == len(parts) - 1:
            break
        child = node.child(path[-1])
        if child is None or (child.kind == "scalar" and child.value is None):
            child = Node("map", 0, 0, {})
            node.value[path[-1]] = child
        node = child
    return node


def _wrong_part(node: Node, part: str, path: Path, model: type[BaseModel]) -> tuple[str, str] | None:
    """Return what is wrong with one part of the path, or None."""
    here = f"in {quoted(dotted(path))}" if path else "at the top"
    if node.kind == "scalar":
        return f"found a single value {here}, expected a mapping", "give the whole value, or a shorter path"
    if node.kind == "list":
        if part.isascii() and part.isdigit() and len(part) < 6 and int(part) < len(node.value):
            return None
        return f"found {quoted(part)} {here}, expected an index from 0 to {len(node.value) - 1}", "indices begin at 0"
    types = types_at(model, path)
    known = keys_of(types)
    if not known or part in known:
        return None
    message = f"found the unknown key {quoted(part)} {here}, expected one of {', '.join(sorted(known))}"
    return message, about_key(part, types, model)


def _put(holder: Node, part: str, value: Node) -> None:
    holder.value[int(part) if holder.kind == "list" else part] = value
