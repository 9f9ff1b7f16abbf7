"""Two runs side by side: what differs in what they were made from, and which labels flipped because of it."""

from __future__ import annotations

from typing import Any

from cai.view.page import Ask, run_path
from cai.view.site import Run, identity

_MOST_FLIPS = 100


def collect(ask: Ask) -> dict[str, Any]:
    """Return what `cai audit compare` tells of the runs `a` and `b`; without both only what can be chosen."""
    names = [run.name for run in ask.site.runs()]
    a, b = ask.query.get("a", ""), ask.query.get("b", "")
    told: dict[str, Any] = {"runs": names, "a": a, "b": b, "is_chosen": bool(a and b), "found": None}
    if not told["is_chosen"]:
        return told
    one, other = ask.run_named(a), ask.run_named(b)
    found = ask.site.compared(one, other)
    if found is None:
        return told
    counted = [run.reckoning() for run in (one, other)]
    return told | {
        "accounting": [c.accounting if c else None for c in counted],
        "found": {
            **found,
            "runs": [one.name, other.name],
            "models": {role: [identity(m or "") for m in pair] for role, pair in found["models"].items()},
            "constitution": [_principle(one, other, row) for row in found["constitution"]],
            "n_flips": len(found["flips"]),
            "flips": [_flip(one, other, flip) for flip in found["flips"][:_MOST_FLIPS]],
        },
    }


def _principle(one: Run, other: Run, row: dict[str, Any]) -> dict[str, Any]:
    holder = one if row["change"] == "removed" else other
    principle = holder.view.constitution[row["principle"]]
    return {"parts": {}} | row | {"title": principle.title, "line": row["line"].rpartition("/")[2]}


def _flip(one: Run, other: Run, flip: dict[str, Any]) -> dict[str, Any]:
    return {
        **flip,
        "href": run_path(one.name, "trail", flip["pair_id"]),
        "other_href": run_path(other.name, "trail", flip["other_pair_id"]),
    }
