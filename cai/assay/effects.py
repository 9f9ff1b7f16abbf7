"""What a judge goes by besides quality: length and style, with the people's label held fixed (statsmodels).

A logistic regression of the judge's pick on the people's label and on the answers' differences, without an intercept,
so that two equal answers are even and swapping them changes the sign (as in length-controlled win rates, Dubois et al.
2024). Differences are squashed by tanh of their standard score.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import statsmodels.api as sm

from cai import checks
from cai.assay.bench import Row, marks
from cai.evaluate.intervals import LEVEL

LEAST_ROWS = 40
FEATURES: dict[str, Callable[[str], int]] = {"words": checks.count_words, "lists, headings, bold": marks}


def measure(rows: Sequence[Row]) -> dict[str, Any]:
    """Return the effects in log-odds with intervals clustered by prompt, or why they cannot be told.

    `infinite`: features left out since they have no finite effect, such as one that decides every verdict on the few
    pairs that differ in it; with the number of these pairs.
    """
    used = [row for row in rows if row.averaged in ("a", "b")]
    if len(used) < LEAST_ROWS:
        return {"n": len(used), "effects": [], "why_not": f"{len(used)} verdicts are too few, {LEAST_ROWS} are needed"}
    picks = np.array([float(row.averaged == "a") for row in used])
    labels = np.array([{"a": 1.0, "b": -1.0, "tie": 0.0}[row.pair.label] for row in used])
    columns = {"people's label": labels} | {name: _squashed(used, size) for name, size in FEATURES.items()}
    columns = {name: column for name, column in columns.items() if column.any()}
    if len(set(picks)) < 2:
        return {"n": len(used), "effects": [], "why_not": "the judge picked the same arm throughout"}
    prompts = [row.prompt_id for row in used]
    for infinite in _candidates(columns):
        kept = {name: column for name, column in columns.items() if name not in infinite}
        found = _fitted(picks, np.column_stack(list(kept.values())), prompts)
        if found is not None:
            break
    else:
        return {"n": len(used), "effects": [], "why_not": "one of them alone decides every verdict"}
    effects = [
        {"name": name, "value": float(value), "low": float(low), "high": float(high)}
        for name, value, (low, high) in zip(kept, found.params, found.conf_int(1 - LEVEL), strict=True)
    ]
    differ = {name: int(np.count_nonzero(columns[name])) for name in infinite}
    return {"n": len(used), "effects": effects, "infinite": differ, "why_not": None}


def _candidates(columns: dict[str, np.ndarray]) -> list[list[str]]:
    """Return what may be left out so that the others can be told: nothing, one feature, all; the rarest first."""
    features = sorted((name for name in columns if name in FEATURES), key=lambda name: np.count_nonzero(columns[name]))
    return [left for left in ([], *([name] for name in features), features) if len(left) < len(columns)]


def _squashed(rows: Sequence[Row], size: Callable[[str], int]) -> np.ndarray:
    differences = np.array([float(size(row.pair.text_a) - size(row.pair.text_b)) for row in rows])
    spread = differences.std()
    return np.tanh(differences / spread) if spread else np.zeros_like(differences)


def _fitted(picks: np.ndarray, columns: np.ndarray, prompts: Sequence[str]) -> Any | None:
    groups = np.unique(prompts, return_inverse=True)[1]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            return sm.Logit(picks, columns).fit(disp=False, cov_type="cluster", cov_kwds={"groups": groups})
    except (Warning, np.linalg.LinAlgError, ValueError):
        return None  # separation: a coefficient would have to be infinite
