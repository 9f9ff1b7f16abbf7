"""The constitution as the run used it, with what every principle did."""

from __future__ import annotations

from typing import Any

from cai.view.page import Ask, run_path
from cai.view.site import Reckoning


def collect(ask: Ask) -> dict[str, Any]:
    """Return the principles in the file's order, each with its texts, its tests and its figures per phase."""
    run = ask.run
    made, counted = run.view.constitution, run.reckoning() if run.has_begun else None
    principles = []
    for p in made.principles:
        given = p.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        principles.append(
            {
                "id": p.id,
                "title": p.title,
                "weight": p.weight,
                "domains": given.get("domains"),
                "decided_by": "code" if p.check is not None else "judge",
                "texts": {part: given[part] for part in ("critique", "revision", "compare") if part in given},
                "check": given.get("check"),
                "tests": given.get("tests", []),
                "line": made.line_of(p.id).rpartition("/")[2],
                "figures": _figures(counted, p.id),
                "decisions_href": run_path(run.name, "decisions") + f"?principle={p.id}",
            }
        )
    return {
        "run": run.name,
        "name": made.name,
        "description": made.description,
        "id": made.id,
        "has_counted": counted is not None,
        "principles": principles,
    }


def _figures(counted: Reckoning | None, principle_id: str) -> list[dict[str, Any]]:
    if counted is None:
        return []
    return [
        {"phase": phase["name"], "side": phase["side"], **tally}
        for phase in counted.phases
        for tally in phase["judged"]["principles"]
        if tally["principle"] == principle_id
    ]
