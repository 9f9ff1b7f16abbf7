"""The report: what a run did and what changed, as one HTML page, its JSON twin, and a few lines for the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.manifest import write_atomically
from cai.report.collect import SCHEMA, collect
from cai.report.page import as_json, render
from cai.store import ledger
from cai.trail import RunView

__all__ = ["collect", "headline", "kept_report", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` and `report.json` into the run's folder and return the page's path."""
    folder = Path(run_dir)
    data = collect(folder)
    write_atomically(folder / "report.json", as_json(data))
    write_atomically(folder / "report.html", render(data))
    return folder / "report.html"


def kept_report(run_dir: str | Path) -> Path | None:
    """Return the page of a finished run that still tells how things stand, or None where it must be written."""
    page = Path(run_dir) / "report.html"
    return page if page.exists() and _kept(run_dir) else None


def headline(run_dir: str | Path) -> list[str]:
    """Return three to eight plain lines about a run: warnings first, then what changed and how sure that is."""
    return list((_kept(run_dir) or collect(run_dir))["headline"]["lines"])


def _kept(run_dir: str | Path) -> dict[str, Any] | None:
    """Return what `collect` gave when the report was written, if the run was done then and nothing came after it."""
    with RunView(run_dir) as run:
        path, done = run.folder / "report.json", run.manifest["done"]
        if not done or not path.exists():
            return None
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            head = ledger.head(run.connection)
            told = (data["run"]["done"], data["schema"], data["ledger"])
        except (ValueError, KeyError, TypeError):
            return None
        return data if told == (done["time"], SCHEMA, {"count": head.count, "head": head.hash}) else None
