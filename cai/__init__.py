"""Constitutional AI from one YAML file: generate, judge, audit, train."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from cai.audit.frames import Frames

__version__ = "0.1.0"


def load(run: str | Path) -> Frames:
    """Return a run's tables for a notebook: `cai.load("runs/quickstart").decisions()` is a pandas data frame."""
    from cai.audit.frames import Frames

    return Frames(run)
