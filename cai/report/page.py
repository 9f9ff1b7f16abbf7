"""The page: one HTML file that needs nothing beside it, made from the collected tree alone.

Text from models, files and people enters the page as a value that is escaped, and nothing in it is hidden: control
characters, changes of direction and invisible signs are shown by their names.
"""

from __future__ import annotations

import json
import re
import unicodedata
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from cai.report import figures, words

_HERE = Path(__file__).resolve().parent
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b\u200e\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\U000e0000-\U000e007f\ud800-\udfff]"
)
"""What a reader cannot see. The joiners U+200C and U+200D and variation selectors stay: scripts and emoji need them."""
_CREDENTIALS = re.compile(r"(?<=://)[^/\s@'\"]+@")
_NAMES = {"\x00": "NUL", "\x07": "BEL", "\x08": "BS", "\x1b": "ESC", "\r": "CR", "\x0c": "FF", "\x7f": "DEL"}


def shown(text: object) -> Markup:
    """Return text as HTML shows it and does not obey it, with every invisible character made visible."""
    plain = str(text).replace("\r\n", "\n")
    parts: list[Markup] = []
    last = 0
    for match in _UNSEEN.finditer(plain):
        parts += [escape(plain[last : match.start()]), _visible(match[0])]
        last = match.end()
    return Markup("").join([*parts, escape(plain[last:])])


def _visible(character: str) -> Markup:
    code = f"U+{ord(character):04X}"
    name = unicodedata.name(character, _NAMES.get(character, "control character"))
    return Markup('<span class="unseen" title="{}">{}</span>').format(name, _NAMES.get(character, code))


def redacted(text: str) -> str:
    """Return text without the user and password of any URL in it."""
    return _CREDENTIALS.sub("…@", text)


def render(data: dict[str, Any]) -> str:
    """Return the page of a collected run."""
    return page_of("page.html.jinja", data)


def page_of(template: str, data: dict[str, Any]) -> str:
    """Return the page that one of this folder's templates makes of a tree of plain values."""
    page = environment().get_template(template).render(data=data)
    # What the config or a curve is called may hold half a surrogate pair, which no file can.
    return page.encode("utf-8", "replace").decode()


@cache
def environment(*folders: Path) -> Environment:
    """Return the environment of the page's templates; those of `folders` are found first."""
    made = Environment(
        loader=FileSystemLoader([*folders, _HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "shown": shown,
        "percent": words.percent,
        "points": words.points,
        "signed": words.signed,
        "number": words.number,
        "seconds": words.seconds,
        "plural": words.plural,
        "change": _change,
        "value": _value,
        "plain": _plain,
        "consistency": words.consistency_of,
        "redacted": redacted,
    }
    made.globals |= {"curves": figures.curves, "bar": figures.bar, "figure": figures, "NONE": words.NONE}
    return made


def _value(figure: float | None, unit: str) -> str:
    """Return a figure in its unit: a share as a percentage."""
    return words.percent(figure, 1) if unit == "share" else words.number(figure)


def _plain(value: Any) -> str:
    """Return a value of a constitution as text: what is no text, as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _change(estimate: dict[str, Any] | None, unit: str) -> dict[str, str]:
    """Return a change and its interval in words: shares in points."""
    if estimate is None:
        return {"value": words.NONE, "interval": words.NONE}
    ends = [estimate["value"], *(end for end in (estimate["low"], estimate["high"]) if end is not None)]
    digits = 2 if unit != "share" and max(map(abs, ends)) < 10 else 1
    value, *interval = [words.signed(100 * end if unit == "share" else end, digits) for end in ends]
    return {"value": value, "interval": " to ".join(interval) or words.NONE}


def as_json(data: dict[str, Any]) -> str:
    """Return the page's JSON twin, ASCII only, so that nothing in it can steer a terminal."""
    return json.dumps(data, indent=1, ensure_ascii=True, allow_nan=False) + "\n"
