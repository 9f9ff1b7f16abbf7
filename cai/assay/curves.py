"""Recalibration curves, fitted by scipy and scikit-learn (the `audit` extra)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import minimize_scalar
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

Points = Sequence[tuple[float, int]]
Curve = Callable[[float], float]
Fitted = tuple[Curve, dict[str, float]]

_LEAST_P = 1e-6
_TEMPERATURES = (0.02, 200.0)


def logit(p: float) -> float:
    """Return the log-odds (nats), cut at a probability of one in a million."""
    p = min(max(p, _LEAST_P), 1 - _LEAST_P)
    return math.log(p / (1 - p))


def sigmoid(x: float) -> float:
    """Return the probability of log-odds."""
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, x))))


def temperature(points: Points) -> Fitted:
    """Return log-odds divided by the one temperature with the least log loss (Guo et al. 2017, §4.2)."""
    logits = np.array([logit(p) for p, _ in points])
    signs = np.array([1.0 if y else -1.0 for _, y in points])

    def loss(log_t: float) -> float:
        return float(np.logaddexp(0.0, -signs * logits / math.exp(log_t)).mean())

    bounds = tuple(math.log(t) for t in _TEMPERATURES)
    found = math.exp(float(minimize_scalar(loss, bounds=bounds, method="bounded").x))
    return lambda p: sigmoid(logit(p) / found), {"temperature": found}


def platt(points: Points) -> Fitted:
    """Return a logistic curve of the log-odds (Platt 1999), its slope weakly held to zero where data are few."""
    x = np.array([[logit(p)] for p, _ in points])
    fit = LogisticRegression(C=100.0).fit(x, [y for _, y in points])
    slope, offset = float(fit.coef_[0, 0]), float(fit.intercept_[0])
    return lambda p: sigmoid(slope * logit(p) + offset), {"slope": slope, "offset": offset}


def isotonic(points: Points) -> Fitted:
    """Return the rising step curve with the least squared error (Zadrozny and Elkan 2002)."""
    fit = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip")
    fit.fit([p for p, _ in points], [y for _, y in points])
    return lambda p: float(fit.predict([p])[0]), {}


CURVES: dict[str, Callable[[Points], Fitted]] = {"temperature": temperature, "platt": platt, "isotonic": isotonic}
