"""Geometry of best-of-n figures: one panel for every scorer and measure, one line for every policy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from cai.report.words import percent

WIDTH, HEIGHT = 640, 200
"""Of a panel, in SVG units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 120, 12, 26
_LABEL = 13
"""Least distance of two labels."""

Curve = Mapping[str, Any]


def panels(curves: Sequence[Curve]) -> list[dict[str, Any]]:
    """Return a panel for each way to pick and to measure: shares from 0 to 1 over n, on a logarithmic axis."""
    ways = list(dict.fromkeys((c["picked_by"], c["measured_by"]) for c in curves))
    return [_panel(way, [c for c in curves if (c["picked_by"], c["measured_by"]) == way]) for way in ways]


def _panel(way: tuple[str, str], curves: Sequence[Curve]) -> dict[str, Any]:
    sizes = sorted({point["n"] for c in curves for point in c["points"]})
    most = math.log(max(sizes)) or 1.0

    def across(n: int) -> float:
        return _LEFT + math.log(n) / most * (WIDTH - _LEFT - _RIGHT)

    lines = [_line(c, across) for c in curves]
    at = -math.inf
    for line in sorted(lines, key=lambda line: line["points"][-1]["y"]):
        at = line["label_at"] = max(line["points"][-1]["y"], at + _LABEL)
    return {
        "picked_by": way[0],
        "measured_by": way[1],
        "lines": lines,
        "x_ticks": [{"at": across(n), "label": n} for n in sizes],
        "y_ticks": [{"at": _up(share), "label": percent(share)} for share in (0.0, 0.5, 1.0)],
        "description": "; ".join(_in_words(c) for c in curves),
    }


def _up(share: float) -> float:
    return HEIGHT - _BOTTOM - share * (HEIGHT - _TOP - _BOTTOM)


def _line(curve: Curve, across: Any) -> dict[str, Any]:
    points = []
    for point in curve["points"]:
        worth = point["worth"]
        span = None if worth["low"] is None else (_up(worth["low"]), _up(worth["high"]))
        points.append({"x": across(point["n"]), "y": _up(worth["value"]), "span": span})
    path = " ".join(f"{p['x']:.1f},{p['y']:.1f}" for p in points)
    return {"policy": curve["policy"], "points": points, "path": path}


def _in_words(curve: Curve) -> str:
    told = ", ".join(f"{percent(p['worth']['value'])} at n = {p['n']}" for p in curve["points"])
    return f"{curve['policy']}: {told}"
