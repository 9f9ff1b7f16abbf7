"""What every benchmark says: the machine, a table, JSON."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from cai.cli.terminal import say, say_json, table


def machine() -> dict[str, Any]:
    """Return when and on what a benchmark runs."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 1),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def kept(path: Path) -> dict[str, Any]:
    """Return what benchmarks wrote into a file, {} where there is none. Raises SystemExit for one cut short."""
    if not path.exists():
        return {}
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise SystemExit(f"{path}: not whole JSON ({error}); remove it and measure again") from error
    return found


def show(found: dict[str, Any], rows: Sequence[Sequence[Any]], *, as_json: bool) -> int:
    """Print what was found, as JSON or as a table of (what, figure, to reach); return the exit code."""
    if as_json:
        say_json(found)
    else:
        where = f"{found['cores']} cores, {found['memory_gib']} GiB, load {found['load']}"
        say(f"{found['bench']} · {found['date']} · {where}")
        say(table(rows, head=("what", "figure", "to reach")))
    return 0
