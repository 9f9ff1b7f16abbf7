"""What passes between a tool's file and the desk."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cai.errors import UserError
from cai.review.desk import SIDES


class Task(NamedTuple):
    """One item as another tool gets it."""

    item_id: str
    token: str
    """Says which arm stands first, to this run only."""
    prompt: str
    answer_1: str
    answer_2: str
    question: str


@dataclass(frozen=True, slots=True)
class Cast:
    """One vote as another tool gives it back."""

    token: str
    item_id: str
    side: str
    """`left` is the first answer."""
    reviewer: str | None
    confidence: int | None = None
    reason: str = ""
    duration_s: float | None = None
    name: str = ""
    """The row, for reports."""


class LeftOut(NamedTuple):
    """A row that holds no vote."""

    name: str
    why: str


def side_named(word: str) -> str | None:
    """Return the side a tool's word means, or None where it means none."""
    word = word.strip().lower().replace(" ", "_").replace("'", "")
    known = {side: side for side in SIDES} | {
        "1": "left",
        "2": "right",
        "answer1": "left",
        "answer2": "right",
        "answer_1": "left",
        "answer_2": "right",
    }
    return known.get(word)


def as_dict(value: Any) -> dict[str, Any]:
    """Return a value that is an object, else an empty one: a tool's file may hold anything."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """Return a value that is a list, else an empty one."""
    return value if isinstance(value, list) else []


def read_json(path: Path) -> Any:
    """Return what a JSON file holds. Raises UserError naming the place of what is not JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        said = getattr(error, "strerror", None) or error
        raise UserError(f"{path}: cannot be read ({said}); give the tool's JSON export") from error
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); give the tool's JSON export") from None
    except RecursionError:
        raise UserError(f"{path}: nested too deeply to be an export") from None
