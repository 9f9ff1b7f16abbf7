"""Whether a judge's probabilities mean what they say, and what makes them mean it.

A probability of arm a is compared with whether people preferred arm a. Three recalibrations are fitted on one half of
the prompts and shown on the other: temperature (one number, Guo et al. 2017), Platt's logistic curve (two numbers) and
isotonic regression (any rising curve).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from cai import canon
from cai.assay.labelled import Labelled
from cai.errors import install_extra
from cai.evaluate.intervals import estimate, mean

N_BINS = 10
"""Bins of equal width that calibration errors are counted in."""
LEAST_ROWS = 40
"""Below so many rows nothing is recalibrated: half of them fit no curve."""
_LEAST_P = 1e-6

Points = Sequence[tuple[float, int]]
"""(probability of arm a, whether people preferred arm a)."""
Curve = Callable[[float], float]


class _Row(Protocol):
    pair: Labelled

    @property
    def said(self) -> Any: ...


def measure(rows: Sequence[_Row], *, seed: int = 0) -> dict[str, Any] | None:
    """Return calibration before and after; None where no row can be used. Rows people called a tie are left out."""
    used = [(row.pair.prompt.id, row.said.p_a, int(row.pair.label == "a")) for row in rows if _is_usable(row)]
    return measure_points(used, seed=seed)


def measure_points(used: Sequence[tuple[str, float, int]], *, seed: int = 0) -> dict[str, Any] | None:
    """Return what `measure` does of (prompt's id, probability of arm a, whether people preferred arm a)."""
    if not used:
        return None
    points = [(p, y) for _, p, y in used]
    fitted_on = [(p, y) for id_, p, y in used if in_fitting_half(id_)]
    shown_on = [(id_, p, y) for id_, p, y in used if not in_fitting_half(id_)]
    told: dict[str, Any] = {
        "n": len(points),
        "n_bins": N_BINS,
        "bins": bins(points),
        "errors": errors([(id_, p, y) for id_, p, y in used], seed=seed),
        "n_fitted": len(fitted_on),
        "n_shown": len(shown_on),
        "recalibrated": [],
        "why_not": _why_not(fitted_on, shown_on),
    }
    if told["why_not"] is None:
        try:
            told["recalibrated"] = _recalibrated(fitted_on, shown_on, seed)
        except ImportError as error:
            told["why_not"] = f"no module '{error.name}'; install it {install_extra('audit')}"
    return told


def _is_usable(row: _Row) -> bool:
    return row.pair.label != "tie" and row.said.p_a is not None


def in_fitting_half(prompt_id: str) -> bool:
    """Return whether a prompt's rows fit the curves; the others show them."""
    return canon.unit_interval("half", prompt_id) < 0.5


def _why_not(fitted_on: Points, shown_on: Sequence[Any]) -> str | None:
    if len(fitted_on) + len(shown_on) < LEAST_ROWS:
        return f"{len(fitted_on) + len(shown_on)} rows are too few, {LEAST_ROWS} are needed"
    if len({y for _, y in fitted_on}) < 2:
        return "people preferred the same arm throughout the fitting half"
    return None


def _recalibrated(fitted_on: Points, shown_on: Sequence[tuple[str, float, int]], seed: int) -> list[dict[str, Any]]:
    from cai.assay.curves import CURVES

    found = [{"name": "as it is", "parameters": {}, "errors": errors(shown_on, seed=seed), "bins": None}]
    for name, fit in CURVES.items():
        curve, parameters = fit(fitted_on)
        mended = [(id_, curve(p), y) for id_, p, y in shown_on]
        told = {"name": name, "parameters": parameters, "errors": errors(mended, seed=seed)}
        found.append(told | {"bins": bins([(p, y) for _, p, y in mended])})
    return found


def errors(points: Sequence[tuple[str, float, int]], *, seed: int = 0) -> dict[str, Any]:
    """Return Brier score and log loss (means with intervals clustered by prompt) and the expected calibration error.

    Brier runs from 0 to 1 and is 0.25 for one half throughout; log loss is in nats, 0.693 for one half throughout.
    """
    return {
        "n": len(points),
        "brier": _mean_loss([(id_, (p - y) ** 2) for id_, p, y in points], seed),
        "log_loss": _mean_loss([(id_, log_loss(p, y)) for id_, p, y in points], seed),
        "ece": ece([(p, y) for _, p, y in points]),
    }


def log_loss(p: float, y: int) -> float:
    """Return minus the log of the probability given to what came true (nats), at most 13.8."""
    return -math.log(max(_LEAST_P, p if y else 1 - p))


def _mean_loss(losses: Sequence[tuple[str, float]], seed: int) -> dict[str, Any] | None:
    by_prompt: dict[str, list[float]] = {}
    for id_, loss in losses:
        cell = by_prompt.setdefault(id_, [0.0, 0.0])
        cell[0] += loss
        cell[1] += 1
    found = estimate(list(by_prompt.values()), mean, seed=seed)
    return found and {"value": found.value, "low": found.low, "high": found.high}


def bins(points: Points) -> list[dict[str, Any]]:
    """Return the filled bins: their ends, how many points, their mean probability and how often arm a was preferred."""
    held: dict[int, list[tuple[float, int]]] = {}
    for p, y in points:
        held.setdefault(min(N_BINS - 1, int(p * N_BINS)), []).append((p, y))
    return [
        {
            "low": place / N_BINS,
            "high": (place + 1) / N_BINS,
            "n": len(found),
            "said": math.fsum(p for p, _ in found) / len(found),
            "came_true": sum(y for _, y in found) / len(found),
        }
        for place, found in sorted(held.items())
    ]


def ece(points: Points) -> float | None:
    """Return the expected calibration error over 10 bins of equal width; None of nothing."""
    if not points:
        return None
    return math.fsum(b["n"] * abs(b["said"] - b["came_true"]) for b in bins(points)) / len(points)
