"""Seeded mistakes in a constitution, each linted as an editor would: a process of its own, start-up included.

    python -m bench.mistakes [--json]

The mistakes are those of `tests/test_constitution.py`, which also says what each message must name.
"""

from __future__ import annotations

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench.show import machine, show
from tests.test_constitution import MISTAKES, broken


def measure() -> dict[str, Any]:
    """Return how many mistakes were told with file, line and column, and the seconds it took to tell one."""
    took, spent, told = [], [], 0
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "c.yaml"
        for name in MISTAKES:
            text, (line, column) = broken(name)
            file.write_text(text, encoding="utf-8")
            began, before = time.monotonic(), _spent()
            done = subprocess.run(
                [sys.executable, "-m", "cai", "constitution", "lint", str(file)],
                capture_output=True, encoding="utf-8", check=False,
            )  # fmt: skip
            took.append(time.monotonic() - began)
            spent.append(_spent() - before)
            told += done.returncode == 2 and f"{file}:{line}:{column}: found " in done.stdout
    took.sort()
    return {"bench": "mistakes", **machine(), "mistakes": len(MISTAKES), "told": told,
            "median_s": took[len(took) // 2], "longest_s": took[-1], "longest_cpu_s": max(spent)}  # fmt: skip


def _spent() -> float:
    """Return the processor time of all processes that have ended, in seconds: hardly changed by what runs beside."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> int:
    """Measure and show."""
    parser = argparse.ArgumentParser(prog="python -m bench.mistakes", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    arguments = parser.parse_args()
    found = measure()
    rows = (
        ("mistakes told with file, line and column", f"{found['told']} of {found['mistakes']}", "all"),
        ("a process, median", f"{found['median_s']:.2f} s", ""),
        ("a process, longest", f"{found['longest_s']:.2f} s", "< 1 s"),
        ("its processor time, longest", f"{found['longest_cpu_s']:.2f} s", ""),
    )
    return show(found, rows, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
