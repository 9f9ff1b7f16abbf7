"""Draws what the benchmarks found: one SVG of how far each figure is from what it should reach.

python -m bench.plot [--results bench/results.json] [--out docs/benchmarks.svg]
"""

from __future__ import annotations

import argparse
import math
import sys
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from bench.show import kept
from cai.manifest import write_atomically

_WIDTH, _ROW, _LEFT, _RIGHT, _TOP = 760, 34, 330, 90, 64
_SPAN = 4.0
"""The axis goes from a fourth of the aim to four times it."""
_AIMED_PROMPTS = 200_000
"""The size that the aim for memory speaks of."""


class Bar(NamedTuple):
    """One figure beside what it should reach."""

    what: str
    told: str
    """The figure in words."""
    ratio: float
    """How many times better than its aim: 1 reaches it, above 1 is better."""


def bars(results: dict[str, Any]) -> list[Bar]:
    """Return a bar for every aimed-at figure among the results."""
    made: list[Bar] = []
    if judge := results.get("judge"):
        times = judge["times"]["principle last, token ids in batches"]
        made.append(Bar("judging, over principle-first chat", f"{times:.1f}× (≥ 6)", times / 6))
    if pipeline := results.get("pipeline"):
        over = pipeline["over_floor"]
        made.append(Bar("whole walk, over its floor", f"{over:.2f} (≤ 1.10)", 1.10 / over))
    if orchestrator := results.get("orchestrator"):
        if speed := orchestrator.get("speed"):
            for road, aim in (("batched", 25), ("shares", 25), ("single", 8)):
                times = speed[f"{road}_x"]
                made.append(Bar(f"one process, {road}, over openai client", f"{times:.1f}× (≥ {aim})", times / aim))
        if memory := orchestrator.get("memory"):
            growth = memory["growth_mb"]
            sizes = [int(n) for n in memory["sizes"]]
            if sizes[-1] >= _AIMED_PROMPTS:  # what smaller runs add says nothing about the aim
                what = f"memory, {sizes[-1]:,} prompts over {sizes[0]:,}"
                made.append(Bar(what, f"{growth:+.0f} MB (≤ 100)", 100 / max(growth, 1)))
        if again := orchestrator.get("rerun"):
            made.append(Bar("a finished run again", f"{again['again_s']:.1f} s (≤ 5)", 5 / again["again_s"]))
    if incremental := results.get("incremental"):
        share = incremental["judge_share"]
        made.append(Bar("judge calls after 1 of 16 edits", f"{share:.4f} (≤ 0.0625)", 0.0625 / share))
    for name, peer in (results.get("peers") or {}).get("times", {}).items():
        made.append(Bar(f"the same job, {name}", f"{peer:.1f}× slower (≥ 2.0)", peer / 2))
    return made


def draw(found: list[Bar], title: str) -> str:
    """Return the SVG: bars to the right of the line reach their aim."""
    height = _TOP + _ROW * len(found) + 34
    middle = _place(1.0)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'font-family="sans-serif" font-size="13">',
        f"<title>{escape(title)}</title>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<text x="12" y="24" font-size="15" font-weight="bold" fill="#1b1f24">{escape(title)}</text>',
    ]
    for ratio in (0.25, 0.5, 1, 2, 4):
        x = _place(ratio)
        parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP - 8}" y2="{height - 26}" stroke="#d5dae0"/>')
        label = "aim" if ratio == 1 else f"{ratio:g}×"
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 14}" text-anchor="middle" fill="#57606a">{label}</text>')
    for i, bar in enumerate(found):
        y = _TOP + _ROW * i
        x = _place(bar.ratio)
        fill = "#1f7a4d" if bar.ratio >= 1 else "#b35900"
        start, width = min(x, middle), max(abs(x - middle), 2)
        parts += [
            f'<text x="{_LEFT - 60}" y="{y + 17}" text-anchor="end" fill="#1b1f24">{escape(bar.what)}</text>',
            f'<rect x="{start:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 14}" fill="{fill}"/>',
            f'<text x="{max(x, middle) + 6:.1f}" y="{y + 17}" fill="#1b1f24">{escape(bar.told)}</text>',
        ]
    parts.append(
        f'<text x="12" y="{height - 8}" fill="#57606a">Right of the line: the aim is reached. Scale logarithmic, '
        "cut at a fourth and four times.</text></svg>"
    )
    return "\n".join(parts) + "\n"


def _place(ratio: float) -> float:
    held = min(max(ratio, 1 / _SPAN), _SPAN)
    width = _WIDTH - _RIGHT - _LEFT - 60
    return _LEFT + width * (math.log(held) / math.log(_SPAN) + 1) / 2


def main() -> int:
    """Draw the plot."""
    parser = argparse.ArgumentParser(prog="python -m bench.plot", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--results", type=Path, default=Path("bench/results.json"), help="what `python -m bench` wrote")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks.svg"), help="the picture")
    arguments = parser.parse_args()
    results = kept(arguments.results)
    if not results:
        print(
            f"{arguments.results}: no results there; run `make bench` first, or name them with --results",
            file=sys.stderr,
        )
        return 2
    machine = next(iter(results.values()))
    title = f"Measured {machine['date']}, {machine['cores']} cores, {machine['memory_gib']} GiB, no GPU"
    write_atomically(arguments.out, draw(bars(results), title))
    print(arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
