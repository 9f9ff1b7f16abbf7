"""Cards: what a model or a data set is, written from the run's own files, for whoever gets it without the run."""

from __future__ import annotations

from pathlib import Path

from cai.cards.facts import KINDS, Kind, gather
from cai.cards.text import render
from cai.manifest import write_atomically
from cai.trail import RunView

__all__ = ["KINDS", "Kind", "card", "write"]


def card(run: RunView, kind: Kind, *, phase: str | None = None, license_: str | None = None) -> str:
    """Return a card as Markdown with the Hub's front matter. Raises UserError where there is nothing to describe."""
    return render(kind, gather(run, kind, phase=phase, license_=license_))


def write(run: RunView, kind: Kind, out: Path, *, phase: str | None = None, license_: str | None = None) -> Path:
    """Write a card to `out`/KIND.md and return its path."""
    path = out / f"{kind}.md"
    write_atomically(path, card(run, kind, phase=phase, license_=license_))
    return path
