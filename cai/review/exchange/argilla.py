"""Argilla: records to log into a dataset, and its records with responses back, in the form of version 2 or 1."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import UserError
from cai.manifest import write_atomically
from cai.review.exchange.cast import Cast, LeftOut, Task, as_dict, as_list, read_json, side_named

SETTINGS = {
    "fields": [{"name": name, "type": "text"} for name in ("question", "prompt", "answer_1", "answer_2")],
    "questions": [
        {"name": "better", "type": "ranking", "values": ["answer_1", "answer_2"], "required": False},
        {"name": "quality", "type": "label", "labels": ["tie", "both_bad", "cannot_judge"], "required": False},
        {"name": "reason", "type": "text", "required": False},
    ],
}
"""What the dataset must ask. A label of quality decides where a ranking is given too."""


def write(out: Path, tasks: list[Task]) -> list[str]:
    """Write settings and records to one file and return it. There are no suggestions: the judge stays unseen."""
    records = [
        {
            "external_id": f"{t.item_id}:{t.token}",
            "fields": {"question": t.question, "prompt": t.prompt, "answer_1": t.answer_1, "answer_2": t.answer_2},
        }
        for t in tasks
    ]
    write_atomically(out, json.dumps({"settings": SETTINGS, "records": records}, ensure_ascii=False, indent=1))
    return [str(out)]


def read(path: Path) -> Iterator[Cast | LeftOut]:
    """Yield the votes of submitted responses; drafts and discarded ones are left out."""
    tree = read_json(path)
    records = tree.get("records") or tree.get("items") if isinstance(tree, dict) else tree
    if not isinstance(records, list):
        raise UserError(f"{path}: expected a list of records, or an object with 'records'")
    for number, record in enumerate(records, 1):
        if not isinstance(record, dict):
            yield LeftOut(f"record {number}", "it is not an object")
            continue
        mapping = str(record.get("external_id") or record.get("id") or "")
        for answers, who, status in _responses(record.get("responses")):
            yield _vote(mapping, answers, who, status, f"record {number}")


def _responses(found: Any) -> Iterator[tuple[dict[str, Any], str | None, str]]:
    """Yield (answers by question, user, status) of both ways in which responses are given.

    By user: [{"user_id", "status", "values": {question: {"value"}}}]. By question: {question: [{"value", "user_id"}]}.
    """
    if isinstance(found, list):
        for response in found:
            if isinstance(response, dict):
                values = as_dict(response.get("values"))
                answers = {name: v.get("value") if isinstance(v, dict) else v for name, v in values.items()}
                yield answers, _text(response.get("user_id")), str(response.get("status") or "submitted")
    elif isinstance(found, dict):
        by_user: dict[str | None, tuple[dict[str, Any], set[str]]] = {}
        for name, given in found.items():
            for one in as_list(given):
                if isinstance(one, dict):
                    answers, statuses = by_user.setdefault(_text(one.get("user_id")), ({}, set()))
                    answers[name] = one.get("value")
                    statuses.add(str(one.get("status") or "submitted"))
        for user, (answers, statuses) in by_user.items():
            yield answers, user, "submitted" if statuses == {"submitted"} else sorted(statuses - {"submitted"})[0]


def _text(value: Any) -> str | None:
    return None if value in (None, "") else str(value)


def _vote(mapping: str, answers: dict[str, Any], who: str | None, status: str, name: str) -> Cast | LeftOut:
    if status != "submitted":
        return LeftOut(name, f"its response is '{status[:40]}', not submitted")
    side = side_named(str(answers.get("quality") or "")) or _first(answers.get("better"))
    if side is None:
        return LeftOut(name, "it names no better answer")
    item_id, _, token = mapping.rpartition(":")
    reviewer = f"argilla:{who}" if who else None
    return Cast(
        token=token, item_id=item_id, side=side, reviewer=reviewer, reason=str(answers.get("reason") or ""), name=name
    )


def _first(ranking: Any) -> str | None:
    """Return the side ranked first: version 2 gives names in order, version 1 names with ranks (equal ones tie)."""
    if not isinstance(ranking, list) or not ranking:
        return None
    if all(isinstance(r, dict) for r in ranking):
        ranks = {str(r.get("value")): r.get("rank") for r in ranking}
        if any(not isinstance(rank, int) for rank in ranks.values()):
            return None
        best = [name for name, rank in ranks.items() if rank == min(ranks.values())]
        return "tie" if len(best) > 1 else side_named(best[0])
    return side_named(str(ranking[0]))
