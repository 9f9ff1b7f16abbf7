"""The review queue of one reviewer: the item that waits, as it may be seen before the vote, and nothing else."""

from __future__ import annotations

from typing import Any

from cai.review import SIDES
from cai.view.page import Ask


def collect(ask: Ask) -> dict[str, Any]:
    """Return the next item for whoever asks and how far they are. Blind: no arm, no source, no verdict, no queue."""
    run, reviewer = ask.run, ask.visitor.name
    drawn = run.has_begun and run.has_draws
    item = run.desk.next(reviewer) if drawn else None
    return {
        "run": run.name,
        "reviewer": reviewer,
        "has_drawn": drawn,
        "may_draw": not ask.visitor.reviews_only,
        "sides": list(SIDES),
        "progress": run.desk.progress(reviewer) if drawn else None,
        "item": item.as_dict() if item else None,
    }
