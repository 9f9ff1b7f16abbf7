"""Geometry of the page's figures. The template draws them; everything here is numbers and words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cai.report.words import number

WIDTH, HEIGHT = 640, 190
"""Of a training curve, in SVG units."""
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 8, 10, 26
_CURVES = {
    "loss": "loss",
    "margin": "reward margin",
    "accuracy": "share of pairs in the right order",
    "reward": "reward",
    "reward_model": "reward model's score",
    "reward_judge": "judge's score in the reward",
    "reward_checks": "programmatic principles kept, in the reward",
    "kl": "divergence from the reference, nats per answer",
    "entropy": "entropy, nats per token",
    "clip_fraction": "share of tokens clipped",
    "explained_variance": "explained variance of the value function",
    "length": "tokens per answer",
    "refusal": "share of refusals",
    "boilerplate": "share of stock phrases",
    "held_out_judge": "judge's score on held-out prompts",
    "held_out_checks": "programmatic principles kept on held-out prompts",
}
"""What is drawn of a training curve."""
_AGAINST_KL = {"held_out_judge": "judge's score", "held_out_checks": "programmatic principles kept"}
"""What is drawn over the square root of the divergence: Gao et al. 2022 (2210.10760), eq. 1 in d = sqrt(KL)."""


def curves(rows: Sequence[dict[str, float]]) -> list[dict[str, Any]]:
    """Return a figure for every quantity of a training curve that is drawn; empty below two steps."""
    figures = (curve(title, [(r["step"], r[name]) for r in rows if name in r]) for name, title in _CURVES.items())
    return [figure for figure in (*figures, _against_kl(rows)) if figure]


def _against_kl(rows: Sequence[dict[str, float]]) -> dict[str, Any] | None:
    """Return the judge's score (or else the checks' share) on held-out prompts over sqrt(KL)."""
    name = next((name for name in _AGAINST_KL if any(name in row for row in rows)), None)
    if name is None:
        return None
    points = sorted((row["held_out_sqrt_kl"], row[name]) for row in rows if name in row and "held_out_sqrt_kl" in row)
    return curve(f"{_AGAINST_KL[name]} on held-out prompts", points, over="√KL")


def curve(name: str, points: Sequence[tuple[float, float]], *, over: str = "step") -> dict[str, Any] | None:
    """Return one quantity over the steps (or `over`) as a polyline with ticks and a description in words."""
    if len(points) < 2 or points[0][0] == points[-1][0]:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    y_ticks = ticks(min(ys), max(ys))
    low, high = min(y_ticks[0], *ys), max(y_ticks[-1], *ys)

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - xs[0]) / (xs[-1] - xs[0])
        up = (y - low) / (high - low)
        return _LEFT + across * (WIDTH - _LEFT - _RIGHT), HEIGHT - _BOTTOM - up * (HEIGHT - _TOP - _BOTTOM)

    smooth, digits = smoothed(ys), 6 if over == "step" else 3
    return {
        "name": name,
        "line": _path([place(x, y) for x, y in points]),
        "smooth": _path([place(x, y) for x, y in zip(xs, smooth, strict=True)]) if len(ys) >= 12 else None,
        "y_ticks": [{"at": place(xs[0], y)[1], "label": f"{y:,.6g}"} for y in y_ticks],
        "x_ticks": [{"at": place(x, low)[0], "label": f"{x:,.{digits}g}"} for x in _steps(xs)],
        "over": "training steps" if over == "step" else over,
        "description": _in_words(name, xs, ys, over),
    }


def _in_words(name: str, xs: Sequence[float], ys: Sequence[float], over: str) -> str:
    least, most = min(range(len(ys)), key=ys.__getitem__), max(range(len(ys)), key=ys.__getitem__)
    return (
        f"{name[:1].upper()}{name[1:]} from {number(ys[0])} at {over} {number(xs[0])} to {number(ys[-1])} at {over} "
        f"{number(xs[-1])}; lowest {number(ys[least])} at {over} {number(xs[least])}, highest {number(ys[most])} at "
        f"{over} {number(xs[most])}"
    )


def smoothed(values: Sequence[float]) -> list[float]:
    """Return a centred moving average over about a tenth of the values, narrower at the ends."""
    reach = max(1, len(values) // 20)
    return [sum(near) / len(near) for i in range(len(values)) if (near := values[max(0, i - reach) : i + reach + 1])]


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Return two to `most` round numbers that span the values from `low` to `high`."""
    if high - low < 1e-12 * max(1.0, abs(low), abs(high)):  # nearer than floats can be told apart
        pad = abs(low) * 0.1 or 1.0
        low, high = low - pad, high + pad
    for step in _round_steps((high - low) / most):
        first, last = math.floor(low / step), math.ceil(high / step)
        if last - first < most:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def _round_steps(least: float) -> list[float]:
    unit = 10.0 ** math.floor(math.log10(least))
    return [factor * unit for factor in (1, 2, 2.5, 5, 10, 20, 25, 50)]


def _steps(xs: Sequence[float]) -> list[float]:
    """Return about five steps to label, the first and the last among them."""
    n = min(5, len(xs))
    return [xs[round(i * (len(xs) - 1) / (n - 1))] for i in range(n)]


def _path(points: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


STATE_ORDER = ("kept", "overridden", "tied", "abstained", "filtered", "invalid", "refused", "failed")
"""From what is trained on to what went wrong, as the bar shows it."""


def bar(counts: dict[str, Any]) -> dict[str, Any]:
    """Return where comparisons ended as parts of one bar of 100 units, with a description in words."""
    total = counts["comparisons"] or 1
    parts, at = [], 0.0
    for state in STATE_ORDER:
        if counts[state]:
            width = 100 * counts[state] / total
            parts.append({"state": state, "at": at, "width": width, "n": counts[state]})
            at += width
    described = ", ".join(f"{part['n']:,} {part['state']}" for part in parts) or "none"
    return {"parts": parts, "description": f"of {counts['comparisons']:,} comparisons: {described}"}
