"""The runs of the folder that is served."""

from __future__ import annotations

from typing import Any

from cai.errors import CaiError
from cai.records import STATES
from cai.view.page import Ask, run_path
from cai.view.site import Run, identity


def collect(ask: Ask) -> dict[str, Any]:
    """Return one row for every run, the newest first; a run that cannot be read says why."""
    if ask.visitor.reviews_only:
        return {
            "folder": ask.site.root.name,
            "is_live": False,
            "runs": [
                {"name": run.name, "href": run_path(run.name, "review"), "problem": None} for run in ask.site.runs()
            ],
        }
    rows = [_row(run) for run in ask.site.runs()]
    return {
        "folder": ask.site.root.name,
        "is_live": any(row.get("state") == "at work" for row in rows),
        "runs": sorted(rows, key=lambda row: row.get("created") or "", reverse=True),
    }


def _row(run: Run) -> dict[str, Any]:
    try:
        manifest = run.view.manifest
    except (CaiError, OSError, ValueError) as error:
        return {"name": run.name, "href": run_path(run.name), "problem": str(error)}
    done = manifest["done"]
    return {
        "name": run.name,
        "href": run_path(run.name),
        "problem": None,
        "state": run.state,
        "created": manifest["created"],
        "finished": done["time"] if done else None,
        "constitution": (manifest.get("constitution") or {}).get("name"),
        "policy": identity((manifest.get("models") or {}).get("policy", "")),
        "phases": list(manifest["phases"]),
        "prompts": (manifest.get("prompts") or {}).get("train"),
        "hours": sum(s.get("seconds", 0) for s in manifest["sessions"]) / 3600,
        "accounting": _accounting(manifest),
    }


def _accounting(manifest: dict[str, Any]) -> dict[str, Any] | None:
    """Return the accounting as the run itself last counted it, its phases added up."""
    counted = [phase["accounting"] for phase in manifest["phases"].values() if phase.get("accounting")]
    if not counted:
        return None
    return {name: sum(part.get(name, 0) for part in counted) for name in ("comparisons", "rows", *STATES)}
