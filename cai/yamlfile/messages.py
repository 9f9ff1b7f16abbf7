"""What pydantic refuses, in words of one form: what was found, where, what was expected, what to do."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel

from cai.yamlfile.problems import Path, dotted, quoted
from cai.yamlfile.scalars import Trap, single_quoted
from cai.yamlfile.shapes import choices_of, has_list, keys_of, kinds_of, nearest, types_at
from cai.yamlfile.tree import Node

_EXPECTED = {
    "string_type": "text",
    "path_type": "a path",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "none_required": "null",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "frozen_set_type": "a list",
    "dict_type": "a mapping",
    "mapping_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "greater_than": "a number above {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number below {lt}",
    "less_than_equal": "a number of at most {le}",
    "multiple_of": "a multiple of {multiple_of}",
    "too_short": "at least {min_length} of them",
    "too_long": "at most {max_length} of them",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text that matches {pattern}",
    "literal_error": "{expected}",
    "enum": "{expected}",
}
"""By pydantic's error type; the words in braces come from the error's context."""


def describe(value: Any) -> str:
    """Return a value's kind and the value, for a message."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return f"the boolean {str(value).lower()}"
    if isinstance(value, (int, float)):
        return f"the number {quoted(value)}"
    if isinstance(value, str):
        return f"the text {quoted(value)}" if value.strip() else "an empty text"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return f"a mapping of {len(value)} keys" if value else "an empty mapping"


def expected(error: Any) -> str | None:
    """Return what should have stood there, or None where the error is about something else."""
    form = _EXPECTED.get(error["type"])
    return form.format(**error.get("ctx", {})) if form else None


def place(path: Path, root: Node) -> str:
    """Return how a message names a path: ` in 'principles.2.title' (id 'brief')`; nothing for the file as a whole."""
    if not path:
        return ""
    name = _name_near(path, root)
    return f" in {quoted(dotted(path), 100)}" + (f" ({name})" if name else "")


def aside(path: Path, root: Node) -> str:
    """Return the same after a whole sentence: ` (in 'principles.2.title', id 'brief')`."""
    if not path:
        return ""
    name = _name_near(path, root)
    return f" (in {quoted(dotted(path), 100)}" + (f", {name})" if name else ")")


def _name_near(path: Path, root: Node) -> str:
    """Return the `id` or `name` that the innermost list item on the path carries, since indices are hard to count."""
    node, found = root, ""
    for part in path:
        child = node.child(part)
        if child is None:
            break
        node = child
        for key in ("id", "name"):
            label = node.child(key) if isinstance(part, int) and node.kind == "map" else None
            if label is not None and label.kind == "scalar" and label.text:
                found = f"{key} {quoted(label.text)}"
                break
    return found


def about_type(value: Any, path: Path, model: type[BaseModel], choices: str) -> str:
    """Return what to do about a value of the wrong kind or range."""
    types = types_at(model, path)
    kinds = kinds_of(types)
    if isinstance(value, str):
        return _about_text(value, kinds, types, choices)
    if isinstance(value, (bool, int, float)) and str in kinds and not choices:
        return f"put it in quotes if it is text: {single_quoted(str(value).lower())}"
    if isinstance(value, float) and value.is_integer() and int in kinds:
        return f"write {int(value)}"
    if isinstance(value, dict) and str in kinds:
        return "if it is one text, put it in quotes or on the next line after '>-'"
    if keys := keys_of(types):
        return f"known keys: {', '.join(sorted(keys))}"
    return describe_field(path, model)


def _about_text(value: str, kinds: set[type], types: list[Any], choices: str) -> str:
    near = nearest(value, re.findall(r"'([^']*)'", choices))
    if near is not None:
        return f"did you mean '{near}'?"
    if kinds & {int, float} and re.fullmatch(r"[-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?", value[:64]):
        return f"write it without quotes: {value[:64]}"
    if bool in kinds:
        return "write true or false, without quotes"
    if keys := keys_of(types):
        return f"known keys: {', '.join(sorted(keys))}"
    if has_list(types) and str not in kinds:
        return f"write it as a list: [{quoted(value, 30)}]"
    return f"write {choices}" if choices else ""


def describe_field(path: Path, model: type[BaseModel]) -> str:
    """Return the first sentence of the docstring of the field at `path`, or nothing where it has none."""
    fields = keys_of(types_at(model, path[:-1])) if path else {}
    field = fields.get(str(path[-1])) if path else None
    text = " ".join((field.description or "").split()) if field else ""
    sentence = re.split(r"(?<=\.)\s", text, maxsplit=1)[0].rstrip(".")
    return f"it means: {sentence[:1].lower()}{sentence[1:]}" if sentence else ""


def about_trap(trap: Trap, text: str, path: Path, model: type[BaseModel]) -> str:
    """Return how to write what a trapped scalar was meant as, by what the model expects there."""
    types = types_at(model, path)
    kinds = kinds_of(types) - {type(None)}
    numbers = {int, float}
    choices = choices_of(types)
    quote = f"put it in quotes if it is text: {single_quoted(text[:60])}"
    if trap.kind in kinds or (trap.kind in numbers and kinds & numbers):
        return f"write {trap.instead}"
    if choices and text not in choices:
        return f"write one of {', '.join(quoted(choice) for choice in choices)}"
    if types and not kinds:
        return "write a list" if has_list(types) else "write a mapping of keys"
    if kinds and str not in kinds:
        return "write a number" if kinds & numbers else "write true or false"
    return quote if kinds or not trap.instead else f"write {trap.instead}, or {quote}"
