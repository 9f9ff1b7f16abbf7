"""Every principle before and after on one card: how often it is kept, how often the later answer wins by it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cai.constitution import Constitution
from cai.evaluate.answers import Change


def scorecard(
    constitution: Constitution, rates: Sequence[Change], wins: Mapping[str, Any] | None
) -> list[dict[str, Any]] | None:
    """Return a line for every principle that was measured, in the constitution's order; None where none was.

    `kept` is the share of answers that keep a programmatic principle before and after. `won` is the later policy's
    win rate by this principle alone, with how many comparisons it left undecided; `consistency` says how far the
    judge's two orders agree on it (None for code, which has no favourite position).
    """
    kept = {change.name: change for change in rates}
    won = (wins or {}).get("by_principle") or {}
    judged = {told["principle"]: told for told in ((wins or {}).get("reliability") or {}).get("principles", ())}
    lines = []
    for p in constitution.principles:
        if p.id not in kept and p.id not in won:
            continue
        lines.append(
            {
                "principle": p.id,
                "title": p.title,
                "weight": p.weight,
                "decided_by": "judge" if p.check is None else "code",
                "kept": kept[p.id].as_dict() if p.id in kept else None,
                "won": won.get(p.id),
                "consistency": judged.get(p.id, {}).get("consistency"),
            }
        )
    return lines or None
