"""The reliability plot: an SVG that says in words what it shows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from xml.sax.saxutils import escape

_SIZE, _LEFT, _TOP, _BOTTOM = 320, 52, 24, 46
_WIDTH, _HEIGHT = _LEFT + _SIZE + 150, _TOP + _SIZE + _BOTTOM
_MARKS = (("as it is", "#1b4f8a", "circle"), ("temperature", "#9a4d00", "square"),
          ("platt", "#2d6a2d", "diamond"), ("isotonic", "#7a2f7a", "triangle"))  # fmt: skip
"""Curves by colour and by shape, so that no reader needs the colours."""


def described(name: str, bins: Sequence[dict[str, Any]]) -> str:
    """Return one curve in words."""
    points = "; ".join(
        f"said {b['said']:.2f}, came true {b['came_true']:.2f} ({b['n']} pair{'s' if b['n'] != 1 else ''})"
        for b in bins
    )
    return f"{name}: {points or 'no pairs'}"


def svg(calibration: dict[str, Any], title: str) -> str:
    """Return the plot of a measured calibration as a standalone SVG, its content also as title and description."""
    curves = [("as it is", calibration["bins"])]
    curves += [(c["name"], c["bins"]) for c in calibration["recalibrated"] if c["bins"] is not None]
    words = (
        "Reliability plot. Across: the judge's probability that arm a is better; up: the share of pairs on which "
        "people preferred arm a. A calibrated judge lies on the diagonal. "
        + ". ".join(described(*c) for c in curves)
        + "."
    )
    if len(curves) > 1:
        words += f" Recalibrated curves show the {calibration['n_shown']} pairs they were not fitted on."
    looks = {name: (colour, shape) for name, colour, shape in _MARKS}
    drawn = "\n".join(_curve(bins, *looks[name]) for name, bins in curves)
    legend = "\n".join(_legend(place, name, *looks[name]) for place, (name, _) in enumerate(curves))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" role="img" aria-labelledby="t d" font-family="sans-serif" font-size="12">\n'
        f'<title id="t">{escape(title)}</title>\n<desc id="d">{escape(words)}</desc>\n'
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#ffffff"/>\n{_frame()}\n{drawn}\n{legend}\n</svg>\n'
    )


def _at(said: float, came_true: float) -> tuple[float, float]:
    return _LEFT + said * _SIZE, _TOP + (1 - came_true) * _SIZE


def _frame() -> str:
    lines = [f'<rect x="{_LEFT}" y="{_TOP}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#595959"/>']
    (x1, y1), (x2, y2) = _at(0, 0), _at(1, 1)
    lines.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="#767676" stroke-dasharray="4 4"/>')
    for tick in (0, 0.25, 0.5, 0.75, 1):
        x, y = _at(tick, tick)
        lines.append(f'<text x="{x}" y="{_TOP + _SIZE + 16}" text-anchor="middle" fill="#333333">{tick:g}</text>')
        lines.append(f'<text x="{_LEFT - 6}" y="{y + 4}" text-anchor="end" fill="#333333">{tick:g}</text>')
    middle = _LEFT + _SIZE / 2
    lines.append(
        f'<text x="{middle}" y="{_HEIGHT - 10}" text-anchor="middle" fill="#333333">the judge\'s probability</text>'
    )
    turned = f"rotate(-90 14 {_TOP + _SIZE / 2})"
    lines.append(
        f'<text x="14" y="{_TOP + _SIZE / 2}" text-anchor="middle" transform="{turned}" fill="#333333">'
        "share that people preferred</text>"
    )
    return "\n".join(lines)


def _curve(bins: Sequence[dict[str, Any]], colour: str, shape: str) -> str:
    places = [(*_at(b["said"], b["came_true"]), b["n"]) for b in bins]
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in places)
    line = f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
    return "\n".join([line, *(_mark(x, y, 3 + min(5.0, n**0.5 / 3), colour, shape) for x, y, n in places)])


def _mark(x: float, y: float, r: float, colour: str, shape: str) -> str:
    if shape == "circle":
        return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{r:.1f}" fill="{colour}"/>'
    corners = {
        "square": ((-r, -r), (r, -r), (r, r), (-r, r)),
        "diamond": ((0, -r), (r, 0), (0, r), (-r, 0)),
        "triangle": ((0, -r), (r, r), (-r, r)),
    }[shape]
    return f'<polygon points="{" ".join(f"{x + dx:.1f},{y + dy:.1f}" for dx, dy in corners)}" fill="{colour}"/>'


def _legend(place: int, name: str, colour: str, shape: str) -> str:
    x, y = _LEFT + _SIZE + 20, _TOP + 14 + 20 * place
    return f'{_mark(x, y - 4, 5, colour, shape)}\n<text x="{x + 12}" y="{y}" fill="#333333">{escape(name)}</text>'
