"""Unquoted scalars: the YAML 1.2 core schema, and the traps around it.

A value that YAML 1.1 and 1.2 read differently (`no`, `012`, `12:30:45`, `1_000`), or that only looks like text (a
date), is a Trap: it is refused wherever it stands, since whoever wrote it probably meant something else than what
one of the two makes of it. Only `true` and `false` are booleans, `null` and `~` are null.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]*)|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?")
_YES = frozenset("y Y yes Yes YES on On ON True TRUE".split())
_NO = frozenset("n N no No NO off Off OFF False FALSE".split())
_LONGEST_INT = 18
"""Digits that surely fit into 64 bits."""
_LONGEST_NUMBER = 64
"""No number anybody means is longer, in characters; this also keeps the conversions below cheap."""
_NUMBER_LIKE = re.compile(r"[-+.0-9][-+.0-9_:eE]*")


@dataclass(frozen=True, slots=True)
class Trap:
    """A scalar that is not read, and what it might have been meant as."""

    why: str
    """How it would be read, to follow 'which': `YAML 1.1 reads as the boolean true`."""
    kind: type | None = None
    """The kind it might have been meant as besides text; None where there is none."""
    instead: str = ""
    """How to write that kind."""


def resolve(text: str) -> Any:
    """Return what an unquoted scalar means: None, a bool, an int, a finite float, a str, or a Trap."""
    if text in ("", "~", "null"):
        return None
    if text in ("true", "false"):
        return text == "true"
    if len(text) > _LONGEST_NUMBER:
        return Trap("is too long for a number", int, "a shorter number") if _NUMBER_LIKE.fullmatch(text) else text
    trap = _trap(text)
    if trap is not None:
        return trap
    if _INT.fullmatch(text):
        return _whole(text)
    if _FLOAT.fullmatch(text):
        return _fraction(text)
    return text


def single_quoted(text: str) -> str:
    """Return `text` as a single-quoted YAML scalar."""
    return "'" + text.replace("'", "''") + "'"


def _whole(text: str) -> int | Trap:
    if len(text.lstrip("+-")) > _LONGEST_INT:
        return Trap("is too large for a whole number", int, f"a number of at most {_LONGEST_INT} digits")
    return int(text, 16) if text.startswith("0x") else int(text)


def _fraction(text: str) -> float | Trap:
    value = float(text)
    return value if math.isfinite(value) else Trap("is too large for a number", float, "a smaller number")


def _trap(text: str) -> Trap | None:
    """Return the trap `text` is, or None. The first character rules most texts out before any pattern is tried."""
    if text in _YES or text in _NO:
        word = "true" if text in _YES else "false"
        return Trap(f"YAML 1.1 reads as the boolean {word}", bool, word)
    if text in ("Null", "NULL"):
        return Trap("YAML reads as null", type(None), "null")
    if text in ("=", "<<"):
        return Trap("has a special meaning in YAML 1.1")
    if text[0] in "+-.0123456789":
        for pattern, trap in _NUMBERS:
            if pattern.fullmatch(text):
                return trap(text)
    return None


def _octal(text: str) -> Trap:
    sign = text[0] if text[0] in "+-" else ""
    plain = sign + text.lstrip("+-").lstrip("0") if text.strip("+-0") else "0"
    digits = text.lstrip("+-")
    if set(digits) <= set("01234567"):
        octal = int(sign + digits, 8)
        return Trap(f"YAML 1.1 reads as the octal number {octal}", int, plain)
    return Trap("YAML 1.1 reads as text because of its leading zero", int, plain)


def _decimal(text: str, base: int) -> Trap:
    body = text.lstrip("+-")[2:].replace("_", "")
    value = int(body, base) * (-1 if text[0] == "-" else 1) if 0 < len(body) <= _LONGEST_INT else ""
    by = "1.2" if base == 8 else "1.1"
    return Trap(f"only YAML {by} reads as a number", int, str(value))


def _sexagesimal(text: str) -> Trap:
    return Trap("YAML 1.1 reads as a number in base 60", int, "the number in digits")


_NUMBERS: tuple[tuple[re.Pattern[str], Callable[[str], Trap]], ...] = (
    (re.compile(r"[-+]?0[0-9]+"), _octal),
    (re.compile(r"[-+]?0o_*[0-7][0-7_]*"), lambda t: _decimal(t, 8)),
    (re.compile(r"[-+]?0b_*[01][01_]*"), lambda t: _decimal(t, 2)),
    (re.compile(r"[-+]0x_*[0-9a-fA-F][0-9a-fA-F_]*|0x[0-9a-fA-F_]*_[0-9a-fA-F_]*"), lambda t: _decimal(t, 16)),
    (
        re.compile(r"(?=[^_]*_)[-+]?[0-9][0-9_]*(?:\.[0-9_]*)?(?:[eE][-+]?[0-9]+)?"),
        lambda t: Trap("YAML 1.1 reads as a number with the underscores left out", float, t.replace("_", "")),
    ),
    (re.compile(r"[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"), _sexagesimal),
    (
        re.compile(r"[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:(?:[Tt]|[ \t]+)[0-9]{1,2}:[0-9]{2}:[0-9]{2}[-+Zz0-9:. \t]*)?"),
        lambda t: Trap("YAML 1.1 reads as a date"),
    ),
    (
        re.compile(r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"),
        lambda t: Trap("is not a finite number", float, "a finite number"),
    ),
)
