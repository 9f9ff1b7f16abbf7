"""Geometry of the viewer's figures. The templates draw them; here are numbers, and a description in words for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH, HEIGHT = 640, 170
"""Of a histogram, in SVG units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 8, 8, 14, 24


def histogram(counts: Sequence[int]) -> dict[str, Any]:
    """Return counts in equal bins of [0, 1] as bars, with a description in words."""
    most, total, n_bins = max(counts), sum(counts), len(counts)
    step, floor = (WIDTH - _LEFT - _RIGHT) / n_bins, HEIGHT - _BOTTOM
    heights = [(floor - _TOP) * n / most for n in counts]
    bars = [
        {
            "x": _LEFT + i * step,
            "y": floor - height,
            "width": step - 1.5,
            "height": height,
            "words": f"{i / n_bins:.0%} to {(i + 1) / n_bins:.0%}: {n:,}",
        }
        for i, (n, height) in enumerate(zip(counts, heights, strict=True))
    ]
    peak = max(range(n_bins), key=counts.__getitem__)
    middle = sum(counts[n_bins // 2 - 2 : n_bins // 2 + 2]) / total
    return {
        "bars": bars,
        "ticks": [{"x": _LEFT + s * (WIDTH - _LEFT - _RIGHT), "label": f"{s:.0%}"} for s in (0, 0.25, 0.5, 0.75, 1)],
        "floor": floor,
        "description": (
            f"{total:,} probabilities; most ({counts[peak]:,}) between {peak / n_bins:.0%} and "
            f"{(peak + 1) / n_bins:.0%}; {middle:.0%} within {2 / n_bins:.0%} of one half"
        ),
    }


ROW = 26
"""Height of a row of shares, in SVG units."""
_AXIS = (300, WIDTH - 52)
"""Where the axis of shares begins and ends; names stand before it, figures after it."""


def share_rows(rows: Sequence[Mapping[str, Any]], neutral: float) -> dict[str, Any]:
    """Return shares with intervals as rows on one axis from 0 to 100 %, the neutral value marked."""
    placed = [_share_row(row, ROW * i + ROW / 2 + 6) for i, row in enumerate(rows)]
    return {
        "rows": placed,
        "height": ROW * len(rows) + 30,
        "neutral": _across(neutral),
        "left": _AXIS[0],
        "right": _AXIS[1],
        "ticks": [{"x": _across(share), "label": f"{share:.0%}"} for share in (0, 0.5, 1)],
        "description": "; ".join(row["words"] for row in placed),
    }


def _share_row(row: Mapping[str, Any], y: float) -> dict[str, Any]:
    value, low, high = (row[name] for name in ("value", "low", "high"))
    who = f"{row['title']} {row['phase']}".strip()
    return {
        "y": y,
        "title": _short(row["title"]),
        "phase": row["phase"],
        "value": _across(value),
        "low": _across(low),
        "high": _across(high),
        "label": f"{value:.0%}",
        "share": {"value": value, "low": low, "high": high},
        "words": f"{who}: {value:.0%}, interval {low:.0%} to {high:.0%} of {row['n']:,}",
    }


def _across(share: float) -> float:
    return _AXIS[0] + share * (_AXIS[1] - _AXIS[0])


def _short(text: str, longest: int = 38) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
