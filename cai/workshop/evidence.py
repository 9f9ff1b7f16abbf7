"""What people preferred: overrides that the judge did not foresee, or the rows of any preference set."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import canon
from cai.errors import UserError
from cai.records import Judgment, Message, Override, Prompt
from cai.stages.settle import settle
from cai.trail import RunView


@dataclass(frozen=True, slots=True)
class Preferred:
    """Two answers to one prompt, and which of them a person preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    source: str
    """Where it comes from: the comparison's id, or `file:line`."""


def disagreements(run: RunView) -> Iterator[Preferred]:
    """Yield the comparisons whose latest override names an answer that the judge's own label does not name."""
    rules = run.config.judge
    for phase in run.phases:
        for end in run.ended(phase):
            overrides = [d for d in end.decisions if isinstance(d, Override)]
            if not overrides or overrides[-1].label == "tie":
                continue
            judged = settle(
                end.comparison.id,
                [d for d in end.decisions if isinstance(d, Judgment)],
                run.due(end.comparison, end.prompt.domain),
                on_disagreement=rules.on_disagreement,
                tie_margin=rules.tie_margin,
            )
            if judged.label != overrides[-1].label:
                a, b = (arm.text for arm in end.arms)
                chosen, rejected = (a, b) if overrides[-1].label == "a" else (b, a)
                yield Preferred(end.prompt, chosen, rejected, end.comparison.id)


def preference_rows(path: Path) -> Iterator[Preferred]:
    """Yield the rows of a JSONL file with `prompt` (text or messages), `chosen` and `rejected`. Raises UserError.

    An answer is a text, or a list of messages whose last is the answer, as in TRL's conversational format.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error}); check the path") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON ({error}); expected one object a line") from error
        yield _row(row, where)


def _row(row: Any, where: str) -> Preferred:
    if not isinstance(row, dict) or not all(name in row for name in ("prompt", "chosen", "rejected")):
        raise UserError(f"{where}: expected an object with 'prompt', 'chosen' and 'rejected'")
    try:
        messages = _messages(row["prompt"])
        chosen, rejected = (_messages(row[name])[-1].content for name in ("chosen", "rejected"))
    except (ValueError, IndexError, TypeError, KeyError) as error:
        raise UserError(f"{where}: expected texts or lists of messages with 'role' and 'content'") from error
    return Preferred(Prompt(messages=messages), chosen, rejected, where)


def _messages(value: Any) -> tuple[Message, ...]:
    if isinstance(value, str):
        return (Message(role="user", content=value),)
    return tuple(Message(role=m["role"], content=m["content"]) for m in value)


def drawn(pairs: Iterable[Preferred], most: int, seed: int) -> list[Preferred]:
    """Return at most `most` pairs whose answers differ, each once, drawn by hash and in the order of the draw."""
    by_id = {}
    for pair in pairs:
        if pair.chosen.strip() != pair.rejected.strip():
            by_id.setdefault(canon.content_id("preferred", [pair.prompt.id, pair.chosen, pair.rejected]), pair)
    ordered = sorted(by_id.items(), key=lambda each: canon.unit_interval(seed, "evidence", each[0]))
    return [pair for _, pair in ordered[:most]]
