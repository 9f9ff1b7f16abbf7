"""How the pages name arms, verdicts and ends."""

from __future__ import annotations

from typing import Any

ARMS = {
    "revision": ("first answer", "revision"),
    "samples": ("first sample", "second sample"),
    "policies": ("earlier policy’s answer", "trained policy’s answer"),
}
"""What arm a and arm b are, by the comparison's source."""
STANDS = {
    "votes": "votes",
    "abstains": "abstains: its two orders name different winners",
    "refused": "the judge refused",
    "invalid": "no usable verdict",
    "not_applicable": "does not apply",
    "missing": "was due and is missing",
}
"""How a principle stands in a comparison."""
MEANING = {
    "kept": "decided; a row to train on",
    "overridden": "a person decided",
    "tied": "no side is better",
    "abstained": "every principle contradicted itself in the other order",
    "filtered": "decided, but left out by a filter",
    "invalid": "the judge gave no usable verdict",
    "refused": "the judge refused to judge",
    "failed": "a decision that was due is missing",
}
"""Where a comparison can end."""


def arms(source: str | None) -> tuple[str, str]:
    """Return what the two arms of a comparison are."""
    return ARMS.get(source or "", ("arm a", "arm b"))


def verdict(value: str | None, source: str | None) -> str:
    """Return a verdict in words: the arm that won, or why there is none."""
    first, second = arms(source)
    return {"a": first, "b": second, "tie": "tie", "not_applicable": "does not apply"}.get(value or "", value or "none")


def leaning(p_a: float | None, source: str | None) -> dict[str, Any] | None:
    """Return which arm a probability favours and with how much; None without one."""
    if p_a is None:
        return None
    side = "a" if p_a >= 0.5 else "b"
    return {"arm": side, "words": arms(source)[side == "b"], "p": max(p_a, 1 - p_a)}
