"""The reliability curve of a reward model as an SVG of its own."""

from __future__ import annotations

from cai.evaluate.rewards import Quality

_SIZE, _EDGE = 320, 44


def drawn(quality: Quality) -> str:
    """Return the curve: what the model said against what the labels were, one dot a bin, as large as its pairs."""
    most = max((b.n for b in quality.bins), default=1)
    dots = "".join(
        f'<circle cx="{_x(b.said):.1f}" cy="{_y(b.was):.1f}" r="{3 + 7 * (b.n / most) ** 0.5:.1f}" fill="#2b6cb0" '
        f'fill-opacity="0.75"><title>said {b.said:.3f}, was {b.was:.3f}, {b.n} pairs</title></circle>'
        for b in quality.bins
    )
    line = " ".join(f"{_x(b.said):.1f},{_y(b.was):.1f}" for b in quality.bins)
    ticks = "".join(
        f'<text x="{_x(t):.0f}" y="{_y(0) + 16:.0f}" text-anchor="middle">{t:g}</text>'
        f'<text x="{_x(0) - 8:.0f}" y="{_y(t) + 4:.0f}" text-anchor="end">{t:g}</text>'
        for t in (0.0, 0.5, 1.0)
    )
    whole = _SIZE + 2 * _EDGE
    words = "Reliability: " + "; ".join(f"said {b.said:.2f}, was {b.was:.2f} ({b.n} pairs)" for b in quality.bins)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {whole} {whole}" font-family="sans-serif" '
        f'font-size="12" role="img" aria-label="{words}"><rect width="{whole}" height="{whole}" fill="#fff"/>'
        f'<rect x="{_x(0)}" y="{_y(1)}" width="{_SIZE}" height="{_SIZE}" fill="none" stroke="#888"/>'
        f'<line x1="{_x(0)}" y1="{_y(0)}" x2="{_x(1)}" y2="{_y(1)}" stroke="#888" stroke-dasharray="4 4"/>'
        f'<polyline points="{line}" fill="none" stroke="#2b6cb0"/>{dots}{ticks}'
        f'<text x="{_x(0.5)}" y="{whole - 8}" text-anchor="middle">probability the model gives to answer A</text>'
        f'<text x="14" y="{_y(0.5)}" text-anchor="middle" transform="rotate(-90 14 {_y(0.5)})">share that preferred A'
        f"</text></svg>\n"
    )


def _x(share: float) -> float:
    return _EDGE + share * _SIZE


def _y(share: float) -> float:
    return _EDGE + (1 - share) * _SIZE
