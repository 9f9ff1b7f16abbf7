"""Whether a rise in a pass rate was bought with a policy that has stopped speaking."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

LEAST_LENGTH_RATIO = 0.5
LEAST_VARIETY_RATIO = 2 / 3
MOST_LIKELIHOOD_FALL = 1.0
"""Nats per token."""
MOST_KL = 1.0
"""Nats per token."""
MOST_REPETITION_RISE = 0.1
MOST_EMPTY_RISE = 0.05
MOST_COPIED_RISE = 0.1


@dataclass(frozen=True, slots=True)
class Sign:
    """One sign of collapse that was looked for."""

    name: str
    """What was looked at."""
    value: float
    limit: float
    unit: str
    """How to read value and limit: `times` the first policy's (at least), or a rise in `share`, or a `fall` or
    distance in `nats` per token (at most)."""
    seen: bool
    """Whether the value lies on the wrong side of the limit."""
    warning: str
    """What to say if it was seen."""


def signs(measured: Mapping[str, Any]) -> list[Sign]:
    """Return every sign that these figures of `evaluate.measure` allow to look for; empty without a last policy."""
    return [*_of_length(measured), *_of_variety(measured), *_of_likelihood(measured), *_of_texts(measured)]


def _of_length(measured: Mapping[str, Any]) -> Iterator[Sign]:
    words = _named(measured, "words")
    if words and words["ratio"]:
        value = words["ratio"]["value"]
        warning = f"length below half of the first policy's ({value:.0%} of it, in words)"
        yield Sign("length", value, LEAST_LENGTH_RATIO, "times", value < LEAST_LENGTH_RATIO, warning)


def _of_variety(measured: Mapping[str, Any]) -> Iterator[Sign]:
    pair = (measured.get("variety") or {}).get("distinct_2") or {}
    if pair.get("before") and pair.get("after") is not None:
        value = pair["after"] / pair["before"]
        warning = f"distinct-2 fell by more than a third (from {pair['before']:.2f} to {pair['after']:.2f})"
        yield Sign("distinct-2", value, LEAST_VARIETY_RATIO, "times", value < LEAST_VARIETY_RATIO, warning)


def _of_likelihood(measured: Mapping[str, Any]) -> Iterator[Sign]:
    likelihood = measured.get("likelihood") or {}
    if change := likelihood.get("change_under_before"):
        fall = -change["value"]
        warning = f"log-likelihood under the first policy fell by {fall:.2f} nats per token"
        yield Sign("log-likelihood", fall, MOST_LIKELIHOOD_FALL, "fall", fall > MOST_LIKELIHOOD_FALL, warning)
    if kl := likelihood.get("kl"):
        value = kl["value"]
        warning = f"the last policy has drifted {value:.2f} nats per token (KL) from the first"
        yield Sign("KL", value, MOST_KL, "nats", value > MOST_KL, warning)


def _of_texts(measured: Mapping[str, Any]) -> Iterator[Sign]:
    told = (
        ("repeated", "repetition", MOST_REPETITION_RISE, "answers repeat themselves"),
        ("empty", "empty answers", MOST_EMPTY_RISE, "answers are empty"),
        ("copied", "copied answers", MOST_COPIED_RISE, "different prompts get the very same answer"),
    )
    for name, title, limit, complaint in told:
        change = _named(measured, name)
        if change and change["difference"]:
            rise = change["difference"]["value"]
            warning = f"{complaint} ({name}: from {change['before']:.0%} to {change['after']:.0%})"
            yield Sign(title, rise, limit, "share", rise > limit, warning)


def _named(measured: Mapping[str, Any], name: str) -> dict[str, Any] | None:
    return next((change for change in measured.get("measures") or () if change["name"] == name), None)


def verdict(measured: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the warnings and everything that was looked at; None where there was nothing to look at."""
    looked = signs(measured)
    if not looked:
        return None
    return {"warnings": [s.warning for s in looked if s.seen], "signs": [asdict(s) for s in looked]}
