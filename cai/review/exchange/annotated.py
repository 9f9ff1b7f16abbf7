"""Annotated pairs 2.0, the JSON of Inverse Constitutional AI and Feedback Forensics: one annotator per person."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import UserError
from cai.manifest import now, write_atomically
from cai.review.exchange.cast import Cast, LeftOut, Task, as_dict, read_json

VERSION = "2.0"
_SIDES = {"a": "left", "b": "right", "text_a": "left", "text_b": "right", "tie": "tie"}
_REASONS = {"tie": "tie", "both_bad": "both_bad", "cannot_judge": "cannot_judge"}


def write(out: Path, tasks: list[Task]) -> list[str]:
    """Write the tasks without any annotation to one file and return it. Response a is the one shown first."""
    tree = {
        "metadata": {
            "version": VERSION,
            "description": "pairs for blind review; add annotators of type 'human' and their annotations",
            "created_at": now(),
            "dataset_name": out.stem,
            "available_metadata_keys_per_comparison": ["cai_mapping_token", "question"],
        },
        "annotators": {},
        "comparisons": [
            {
                "id": t.item_id,
                "prompt": t.prompt,
                "response_a": {"text": t.answer_1},
                "response_b": {"text": t.answer_2},
                "annotations": {},
                "metadata": {"cai_mapping_token": t.token, "question": t.question},
            }
            for t in tasks
        ],
    }
    write_atomically(out, json.dumps(tree, ensure_ascii=False, indent=1))
    return [str(out)]


def read(path: Path) -> Iterator[Cast | LeftOut]:
    """Yield the votes of human annotators; annotations of principles and models are passed over."""
    tree = read_json(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("comparisons"), list):
        raise UserError(f"{path}: expected an object with 'annotators' and 'comparisons' (annotated pairs {VERSION})")
    annotators = as_dict(tree.get("annotators"))
    people = {
        id_: str(a.get("name") or a.get("description") or id_)
        for id_, a in annotators.items()
        if isinstance(a, dict) and a.get("type") in ("human", "unknown")
    }
    for number, comparison in enumerate(tree["comparisons"], 1):
        if not isinstance(comparison, dict):
            yield LeftOut(f"comparison {number}", "it is not an object")
            continue
        for id_, annotation in as_dict(comparison.get("annotations")).items():
            if id_ in people:
                yield _vote(comparison, annotation, people[id_], f"comparison {number}")


def _vote(comparison: dict[str, Any], annotation: Any, who: str, name: str) -> Cast | LeftOut:
    told = as_dict(annotation)
    side = _SIDES.get(str(told.get("pref"))) or _REASONS.get(str(told.get("no_pref_reason")))
    if side is None:
        return LeftOut(name, f"'{who}' names no better answer")
    metadata = as_dict(comparison.get("metadata"))
    return Cast(
        token=str(metadata.get("cai_mapping_token", "")),
        item_id=str(comparison.get("id", "")),
        side=side,
        reviewer=who,
        reason=str(told.get("explanation") or ""),
        name=name,
    )
