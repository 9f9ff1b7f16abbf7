"""The benchmarks that need no peer, one after the other: `make bench`.

    python -m bench [--quick] [--only NAME ...] [--out bench/results.json]

Each prints its table; all of it is written as JSON, and drawn by `python -m bench.plot`. `--quick` is for a look: it
writes only where `--out` says. `--only peers` runs the one that needs peers (see bench/peers.py).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import incremental, judge, orchestrator, peers, pipeline
from bench.show import kept, show
from cai.manifest import write_atomically

Measure = Callable[[], dict[str, Any]]

FULL: dict[str, Measure] = {
    "orchestrator": lambda: orchestrator.measure(3, [10_000, 200_000], 10_000),
    "incremental": lambda: incremental.measure(100),
    "judge": lambda: asyncio.run(judge.measure(3, 3, 256)),
    "pipeline": lambda: asyncio.run(pipeline.measure(16, 3)),
    "peers": lambda: asyncio.run(peers.measure(64, 3, peers.PLACES, peers.KEPT)),
}
QUICK: dict[str, Measure] = {
    "orchestrator": lambda: orchestrator.measure(1, [1_000, 5_000], 300),
    "incremental": lambda: incremental.measure(20),
    "judge": lambda: asyncio.run(judge.measure(2, 1, 96)),
    "pipeline": lambda: asyncio.run(pipeline.measure(8, 1)),
    "peers": lambda: asyncio.run(peers.measure(4, 1, peers.PLACES)),
}
ROWS = {
    "orchestrator": orchestrator.rows,
    "incremental": incremental.rows,
    "judge": judge.rows,
    "pipeline": pipeline.rows,
    "peers": peers.rows,
}


def main() -> int:
    """Run the benchmarks and keep what they found."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small sizes, minutes in all; for a look, not for figures")
    parser.add_argument("--only", nargs="+", choices=sorted(FULL), help="only these")
    parser.add_argument("--out", type=Path, help="where the JSON goes; bench/results.json if not --quick")
    arguments = parser.parse_args()
    out = arguments.out or (None if arguments.quick else Path("bench/results.json"))
    results = kept(out) if out else {}
    for name, measure in (QUICK if arguments.quick else FULL).items():
        if name in (arguments.only or ({*FULL} - {"peers"})):
            results[name] = measure()
            show(results[name], ROWS[name](results[name]), as_json=False)
            if out:
                write_atomically(out, json.dumps(results, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
