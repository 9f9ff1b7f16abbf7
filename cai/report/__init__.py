"""The report: what a run did and what changed, as one HTML page, its JSON twin, and a few lines for the terminal."""

from __future__ import annotations

from pathlib import Path

from cai.manifest import write_atomically
from cai.report.collect import collect
from cai.report.page import as_json, render

__all__ = ["collect", "headline", "write_report"]


def write_report(run_dir: str | Path) -> Path:
    """Write `report.html` and `report.json` into the run's folder and return the page's path."""
    folder = Path(run_dir)
    data = collect(folder)
    write_atomically(folder / "report.json", as_json(data))
    write_atomically(folder / "report.html", render(data))
    return folder / "report.html"


def headline(run_dir: str | Path) -> list[str]:
    """Return three to eight plain lines about a run: warnings first, then what changed and how sure that is."""
    return list(collect(run_dir)["headline"]["lines"])
