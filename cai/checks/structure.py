"""JSON as an answer."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, Literal

from cai.yamlfile import quoted

Fault = tuple[str, str, str, int | None]
"""The rule that is broken, what was found, what is expected, and at which character where that is known."""

_MOST_CHARACTERS = 1_000_000
_KINDS = {"object": dict, "list": list}
_NAMES = {"any": "JSON", "object": "one JSON object", "list": "one JSON list"}


def json_faults(text: str, kind: Literal["any", "object", "list"], keys: Sequence[str]) -> Iterator[Fault]:
    """Yield what keeps a text from being JSON of this kind with these keys.

    The whole text must be JSON by RFC 8259: a code fence or a word around it is a fault, as is a key given twice.
    """
    wanted = f"{_NAMES[kind]} and nothing else is required"
    if len(text) > _MOST_CHARACTERS:
        yield "is_json", f"it has {len(text):,} characters", f"at most {_MOST_CHARACTERS:,} are read as JSON", None
        return
    try:
        value = json.loads(text, parse_constant=_refuse, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        yield "is_json", f"it is not JSON: {error.msg[:1].lower()}{error.msg[1:]}", wanted, error.pos
        return
    except (ValueError, RecursionError) as error:
        why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        yield "is_json", f"it is not JSON: {why}", wanted, None
        return
    if kind in _KINDS and not isinstance(value, _KINDS[kind]):
        yield "is_json", f"it is JSON, and {_named(value)}", wanted, None
        return
    for key in keys:
        if key not in value:
            yield "json_keys", f"it has no key {quoted(key)}", "this key is required", None


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is no JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise ValueError(f"the key {quoted(key)} stands twice in one object")
        seen[key] = value
    return seen


def _named(value: Any) -> str:
    kinds = (
        (dict, "an object"),
        (list, "a list"),
        (str, "a text"),
        (bool, "true or false"),
        ((int, float), "a number"),
    )
    return next((name for kind, name in kinds if isinstance(value, kind)), "null")
