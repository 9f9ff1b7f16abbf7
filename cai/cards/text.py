"""Cards as Markdown. What the run's files hold enters as text: it can open no tag, no table cell and no heading."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cai.report import words

_HERE = Path(__file__).resolve().parent
_MARKS = re.compile(r"([\\`*_{}\[\]<>|#~$&!])")
_PLAIN_SCALAR = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")


def render(kind: str, facts: dict[str, Any]) -> str:
    """Return a card from its facts."""
    text = _environment().get_template(f"{kind}.md.jinja").render(**facts)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


def inline(text: object) -> str:
    """Return text on one line with every sign that Markdown or HTML obeys made harmless, and nothing hidden in it."""
    flat = " ".join(str(text).split())
    seen = "".join(c for c in flat if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    return _MARKS.sub(r"\\\1", seen)


def scalar(text: str) -> str:
    """Return text as a YAML scalar for the front matter."""
    import json

    return text if _PLAIN_SCALAR.fullmatch(text) else json.dumps(text)


def change(estimate: dict[str, Any] | None, unit: str) -> str:
    """Return a change with its interval: shares in points."""
    if estimate is None:
        return words.NONE
    scale = 100 if unit == "share" else 1
    value = words.signed(scale * estimate["value"])
    if estimate["low"] is None:
        return value
    return f"{value} ({words.signed(scale * estimate['low'])} to {words.signed(scale * estimate['high'])})"


def figure(value: float | None, unit: str) -> str:
    """Return a figure in its unit."""
    return words.percent(value, 1) if unit == "share" else words.number(value)


def rate(share: dict[str, Any] | None, digits: int = 0) -> str:
    """Return a share with its interval."""
    if share is None:
        return words.NONE
    told = words.percent(share["value"], digits)
    if share["low"] is None:
        return told
    return f"{told} ({words.percent(share['low'], digits)} to {words.percent(share['high'], digits)})"


@cache
def _environment() -> Environment:
    made = Environment(loader=FileSystemLoader(_HERE), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {
        "inline": inline, "scalar": scalar, "change": change, "figure": figure, "rate": rate,
        "plural": words.plural, "percent": words.percent, "number": words.number, "signed": words.signed,
        "seconds": words.seconds,
    }  # fmt: skip
    made.globals |= {"NONE": words.NONE}
    return made
