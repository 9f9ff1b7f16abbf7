"""Pairs of answers that people have labelled, read from the shapes in which such data is published.

    id, prompt, response_a, response_b, label: A | B | tie         pairs with a label
    input, output_1, output_2, label: 1 | 2                        LLMBar
    chosen, rejected (whole transcripts)                           hh-rlhf
    prompt, chosen, rejected (texts or messages)                   RewardBench, TRL
    chosen, rejected (whole conversations as messages)             TRL without a prompt of its own

The shape is told by the keys. In the last three the better answer always stands first, so which arm it becomes is drawn
by hash: a judge that likes arm a must not look right.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from cai import canon
from cai.errors import UserError
from cai.promptrows import Malformed, from_hh, from_row, parse_json
from cai.promptset import SHOWN, lines
from cai.records import Comparison, Label, Message, Prompt

SHAPES = (
    "prompt, response_a, response_b, label (A, B or tie) · input, output_1, output_2, label (1 or 2) · "
    "chosen, rejected · prompt, chosen, rejected"
)
_LABELS: dict[Any, Label] = {"A": "a", "B": "b", "tie": "tie", "a": "a", "b": "b", 1: "a", 2: "b", "1": "a", "2": "b"}


@dataclass(frozen=True, slots=True)
class Labelled:
    """Two answers and what people say of them."""

    id: str
    """Its id in the file, or its place."""
    prompt: Prompt
    text_a: str
    text_b: str
    label: Label
    subset: str
    """Source and subset, as the file names them; empty where it names none."""
    raters: tuple[Label, ...] = ()
    """What each of several people said; empty where the file gives one label alone."""

    @property
    def comparison(self) -> Comparison:
        """The pair as a comparison, so that the judge can be asked as in a run."""
        arms = (canon.content_id("arm", [self.id, name]) for name in "ab")
        return Comparison(phase="bench", prompt_id=self.prompt.id, a_id=next(arms), b_id=next(arms), source="policies")


def read(path: Path, *, limit: int | None = None) -> list[Labelled]:
    """Return the pairs of a JSONL file (may end in .gz) or of a JSON list, the first `limit` of them.

    Raises UserError naming every malformed row, up to 20, and where there is no row.
    """
    problems: list[str] = []
    found: list[Labelled] = []
    for number, (place, row) in enumerate(islice(_rows(path), limit), 1):
        try:
            found.append(from_any(parse_json(row) if isinstance(row, bytes) else row, number))
        except Malformed as malformed:
            problems.append(f"{place}: {malformed}")
            if len(problems) == SHOWN:
                problems.append(f"stopped reading after {SHOWN} malformed rows")
                break
    if problems:
        raise UserError("\n".join(problems))
    if not found:
        raise UserError(f"{path}: found no rows, expected labelled pairs: {SHAPES}")
    return found


def _rows(path: Path) -> Iterator[tuple[str, Any]]:
    if path.is_dir():
        raise UserError(f"{path}: found a folder, expected a JSONL or JSON file of labelled pairs")
    if path.suffix != ".json":
        yield from lines(path)
        return
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error}); give a JSON list or a JSONL file") from error
    if not isinstance(rows, list):
        raise UserError(f"{path}: found no list, expected a JSON list of labelled pairs, or a JSONL file")
    for number, row in enumerate(rows):
        yield f"{path}: item {number}", row


def from_any(row: Any, number: int) -> Labelled:
    """Return the pair of one row of a known shape. Raises Malformed."""
    if not isinstance(row, dict):
        raise Malformed("found no object, expected one with keys such as prompt, response_a, response_b, label")
    if {"response_a", "response_b", "label"} <= row.keys():
        return _labelled(row, number, "response_a", "response_b")
    if {"input", "output_1", "output_2", "label"} <= row.keys():
        return _labelled(row | {"prompt": row["input"]}, number, "output_1", "output_2")
    if {"chosen", "rejected"} <= row.keys():
        return _preferred(row, number)
    raise Malformed(f"found the keys {', '.join(map(str, row)) or 'none'}, expected one of these sets: {SHAPES}")


def _labelled(row: dict[str, Any], number: int, first: str, second: str) -> Labelled:
    label = row["label"]
    if isinstance(label, (bool, dict, list)) or label not in _LABELS:
        raise Malformed(f"found the label {label!r}, expected A, B or tie (LLMBar: 1 or 2)")
    raters = tuple(_LABELS[r] for r in row.get("annotators") or () if not isinstance(r, (dict, list)) and r in _LABELS)
    return Labelled(
        id=_id(row, number),
        prompt=_prompt(row),
        text_a=_said(row, first),
        text_b=_said(row, second),
        label=_LABELS[label],
        subset=_subset(row),
        raters=raters,
    )


def _preferred(row: dict[str, Any], number: int) -> Labelled:
    if row.get("prompt") is None and row.get("messages") is None:
        read = _of_conversation if isinstance(row["chosen"], list) else _of_transcript
        (prompt, chosen), (other, rejected) = read(row, "chosen"), read(row, "rejected")
        if prompt.messages != other.messages:
            raise Malformed("found two conversations, expected 'chosen' and 'rejected' to differ in the last turn only")
    else:
        prompt, chosen, rejected = _prompt(row), _said(row, "chosen"), _said(row, "rejected")
    better_is_a = canon.unit_interval("arm", canon.text_id(chosen), canon.text_id(rejected)) < 0.5
    text_a, text_b = (chosen, rejected) if better_is_a else (rejected, chosen)
    return Labelled(_id(row, number), prompt, text_a, text_b, "a" if better_is_a else "b", _subset(row))


def _of_transcript(row: dict[str, Any], key: str) -> tuple[Prompt, str]:
    text = row[key]
    if not isinstance(text, str) or "\n\nAssistant:" not in text:
        raise Malformed(
            f"found no transcript in '{key}', expected '\\n\\nHuman: …\\n\\nAssistant: …', or a 'prompt' key"
        )
    asked, _, said = text.rpartition("\n\nAssistant:")
    return from_hh({"chosen": asked}), said.strip()


def _of_conversation(row: dict[str, Any], key: str) -> tuple[Prompt, str]:
    messages = row[key]
    if not isinstance(messages, list) or len(messages) < 2:
        raise Malformed(f"found no conversation in '{key}', expected messages that end with the answer")
    return from_row({"messages": messages[:-1]}), _said(row, key)


def _prompt(row: dict[str, Any]) -> Prompt:
    for key in ("messages", "prompt"):
        value = row.get(key)
        if isinstance(value, list) and value:
            return from_row({"messages": value})
        if isinstance(value, str):
            return from_row({"prompt": value})
    raise Malformed("found no text and no messages in 'prompt', expected the question that was answered")


def _said(row: dict[str, Any], key: str) -> str:
    """Return an answer: a text, or the last of some messages."""
    value = row[key]
    if isinstance(value, list) and value:
        value = value[-1].get("content") if isinstance(value[-1], dict) else value[0] if len(value) == 1 else None
    if not isinstance(value, str) or "\0" in value:
        raise Malformed(f"found {type(row[key]).__name__} in '{key}', expected the answer's text")
    return value.encode("utf-8", "replace").decode()


def _id(row: dict[str, Any], number: int) -> str:
    found = row.get("id")
    return str(found) if isinstance(found, (str, int)) else f"row {number}"


def _subset(row: dict[str, Any]) -> str:
    parts = [str(row[key]) for key in ("source", "subset") if isinstance(row.get(key), (str, int))]
    return " · ".join(parts)


def as_prompt(text: str) -> Prompt:
    """Return a one-turn conversation."""
    return Prompt(messages=(Message(role="user", content=text),))
