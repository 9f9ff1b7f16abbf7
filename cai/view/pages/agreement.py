"""What people said: the judge against people, people among themselves, and what they disagree about."""

from __future__ import annotations

from typing import Any

from cai.review import agreement
from cai.view import words
from cai.view.page import Ask, run_path
from cai.view.site import Run

_MOST_DISPUTES = 50


def collect(ask: Ask) -> dict[str, Any]:
    """Return the report of all reviews of a run, and the comparisons on which reviewers differ."""
    run = ask.run
    if not run.has_begun or not run.has_draws:
        return {"run": run.name, "has_drawn": False, "report": None, "disputes": [], "progress": []}
    _, length = run.followed()
    desk = run.desk
    report = run.remembered("agreement", length, lambda: _report(run))
    names = desk.book.reviewers
    return {
        "run": run.name,
        "has_drawn": True,
        "report": report,
        "disputes": _disputes(run),
        "progress": [{"reviewer": name, **desk.progress(name)} for name in names],
    }


def _report(run: Run) -> dict[str, Any]:
    told = agreement.report(run.view, book=run.desk.book)
    return told | {"run": run.name}


def _disputes(run: Run) -> list[dict[str, Any]]:
    """Return what reviewers differ on, with a way to the place where it can be decided."""
    told = []
    for dispute in run.desk.disputes()[:_MOST_DISPUTES]:
        found = run.index.query("SELECT asked, source FROM comparisons WHERE id = ?", (dispute["comparison_id"],))
        row = found[0] if found else {"asked": None, "source": None}
        told.append(
            {
                "comparison_id": dispute["comparison_id"],
                "href": run_path(run.name, "trail", dispute["comparison_id"]),
                "asked": row["asked"],
                "votes": {name: words.verdict(choice, row["source"]) for name, choice in dispute["votes"].items()},
            }
        )
    return told
