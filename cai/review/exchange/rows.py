"""Votes as rows of CSV or JSON lines, filled in by hand or by a script.

The columns are item_id, token, question, prompt, answer_1, answer_2, and to be filled in: vote (1, 2, tie, both_bad,
cannot_judge, skip), confidence (1 to 3), reason, reviewer. In CSV a cell that a spreadsheet would take for a formula
begins with an apostrophe.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cai import canon
from cai.errors import UserError
from cai.manifest import write_atomically
from cai.review.exchange.cast import Cast, LeftOut, Task, side_named

_EMPTY = ("vote", "confidence", "reason", "reviewer")
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def _rows(tasks: list[Task]) -> Iterator[dict[str, str]]:
    for task in tasks:
        yield task._asdict() | dict.fromkeys(_EMPTY, "")


def write_csv(out: Path, tasks: list[Task]) -> list[str]:
    """Write the tasks as CSV and return the files written."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, [*Task._fields, *_EMPTY])
    writer.writeheader()
    for row in _rows(tasks):
        writer.writerow({k: f"'{v}" if v.startswith(_FORMULA) else v for k, v in row.items()})
    write_atomically(out, text.getvalue())
    return [str(out)]


def write_jsonl(out: Path, tasks: list[Task]) -> list[str]:
    """Write the tasks as JSON lines and return the files written."""
    write_atomically(out, b"".join(canon.dumps(row) + b"\n" for row in _rows(tasks)))
    return [str(out)]


def read_csv(path: Path) -> Iterator[Cast | LeftOut]:
    """Yield the votes of a CSV file; rows without a vote are passed over in silence."""
    csv.field_size_limit(1 << 26)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"token", "vote"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path}:1: no columns 'token' and 'vote'; give a file that `cai review export` wrote")
            for number, row in enumerate(reader, 2):
                yield from _vote(row, f"line {number}")
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV file in UTF-8 ({error})") from error


def read_jsonl(path: Path) -> Iterator[Cast | LeftOut]:
    """Yield the votes of a file of JSON lines."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row = canon.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict):
            yield from _vote(row, f"line {number}")
        elif number == 1:
            raise UserError(f"{path}:1: not a JSON object; give JSON lines, or say with --format what the file is")
        else:
            yield LeftOut(f"line {number}", "it is not a JSON object")


def _vote(row: Mapping[str, Any], name: str) -> Iterator[Cast | LeftOut]:
    told = str(row.get("vote") or "").strip()
    if not told:
        return
    side = side_named(told)
    confidence = str(row.get("confidence") or "").strip()
    if side is None:
        yield LeftOut(name, f"'{told[:40]}' is no vote; expected 1, 2, tie, both_bad, cannot_judge or skip")
    elif confidence not in ("", "1", "2", "3"):
        yield LeftOut(name, f"'{confidence[:40]}' is no confidence; expected 1, 2, 3 or nothing")
    else:
        yield Cast(
            token=str(row.get("token") or ""),
            item_id=str(row.get("item_id") or ""),
            side=side,
            reviewer=str(row.get("reviewer") or "").strip() or None,
            confidence=int(confidence) if confidence else None,
            reason=str(row.get("reason") or ""),
            name=name,
        )
