"""Label Studio: `config.xml` for the project's labelling interface, `tasks.json` to import, its JSON export back."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai.errors import UserError
from cai.manifest import write_atomically
from cai.review.exchange.cast import Cast, LeftOut, Task, as_dict, as_list, read_json, side_named

CONFIG = """\
<View>
  <Header value="$question"/>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="better" toName="answer1,answer2"/>
  <Text name="answer1" value="$answer1"/>
  <Text name="answer2" value="$answer2"/>
  <Choices name="quality" toName="prompt" choice="single" showInline="true">
    <Choice value="tie"/>
    <Choice value="both_bad"/>
    <Choice value="cannot_judge"/>
  </Choices>
  <Rating name="confidence" toName="prompt" maxRating="3"/>
  <TextArea name="reason" toName="prompt" placeholder="Why? (optional)"/>
</View>
"""
"""The labelling interface. A choice of quality says more than a side and decides where both are given."""


def write(out: Path, tasks: list[Task]) -> list[str]:
    """Write both files into the folder `out` and return them. There are no predictions: the judge stays unseen."""
    data = [
        {
            "data": {
                "question": t.question,
                "prompt": t.prompt,
                "answer1": t.answer_1,
                "answer2": t.answer_2,
                "cai_pair_id": t.item_id,
                "cai_mapping_token": t.token,
            }
        }
        for t in tasks
    ]
    write_atomically(out / "config.xml", CONFIG)
    write_atomically(out / "tasks.json", json.dumps(data, ensure_ascii=False, indent=1))
    return [str(out / "config.xml"), str(out / "tasks.json")]


def read(path: Path) -> Iterator[Cast | LeftOut]:
    """Yield the votes of a JSON export. Cancelled annotations are left out; tasks without any hold no vote."""
    tasks = read_json(path)
    if not isinstance(tasks, list):
        raise UserError(f"{path}: expected a list of tasks; export as 'JSON' in Label Studio")
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            yield LeftOut(f"task {number}", "it has no data")
            continue
        for annotation in as_list(task.get("annotations")):
            yield _vote(task["data"], annotation, f"task {task.get('id', number)}")


def _vote(data: dict[str, Any], annotation: Any, name: str) -> Cast | LeftOut:
    if not isinstance(annotation, dict):
        return LeftOut(name, "its annotation is not an object")
    if annotation.get("was_cancelled"):
        return LeftOut(name, "it was cancelled (skipped)")
    side, reason, confidence = None, "", None
    for result in map(as_dict, as_list(annotation.get("result"))):
        value, kind = as_dict(result.get("value")), result.get("type")
        if kind == "choices":
            side = next((named for c in as_list(value.get("choices")) if (named := side_named(str(c)))), side)
        elif kind == "pairwise" and side is None:
            side = side_named(str(value.get("selected", "")))
        elif kind == "textarea":
            reason = " ".join(map(str, as_list(value.get("text"))))
        elif kind == "rating" and value.get("rating") in (1, 2, 3):
            confidence = value["rating"]
    if side is None:
        return LeftOut(name, "it names no better answer")
    lead = annotation.get("lead_time")
    return Cast(
        token=str(data.get("cai_mapping_token", "")),
        item_id=str(data.get("cai_pair_id", "")),
        side=side,
        reviewer=_who(annotation.get("completed_by")),
        confidence=confidence,
        reason=reason,
        duration_s=float(lead) if isinstance(lead, (int, float)) else None,
        name=name,
    )


def _who(completed_by: Any) -> str | None:
    """Return a name for whoever completed it: newer versions give an object, older ones a number."""
    if isinstance(completed_by, dict):
        completed_by = completed_by.get("email") or completed_by.get("username") or completed_by.get("id")
    return None if completed_by in (None, "") else f"label-studio:{completed_by}"
