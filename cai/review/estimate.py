"""How often the judge is right, from the few comparisons that people looked at: shares and their intervals.

All intervals are at LEVEL, two-sided, for the share that a judge like this one would have on comparisons like these
(no finite-population correction, so they are if anything a little wide).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

from cai.evaluate.intervals import LEVEL, wilson

FEW_ERRORS = 5
"""Below so many errors (or successes) the exact interval is given instead of Wilson's."""
PPI_LEAST_N = 100
"""Prediction-powered inference needs at least so many human labels, ..."""
PPI_LEAST_DISAGREEMENTS = 20
"""... and so many on which judge and people differ: with fewer its intervals promise more than they keep (coverage
0.77 to 0.93 in simulations at nominal 0.95)."""
_Z = NormalDist().inv_cdf((1 + LEVEL) / 2)


@dataclass(frozen=True, slots=True)
class Share:
    """A share with its interval."""

    value: float
    """0 to 1."""
    low: float
    """Lower end."""
    high: float
    """Upper end."""
    n: int
    """Human labels behind it."""
    method: str
    """How the interval was made."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return asdict(self)


def share(hits: int, n: int) -> Share | None:
    """Return a share of independent trials: exact (Clopper and Pearson 1934) with few errors, else Wilson's."""
    if not n:
        return None
    if min(hits, n - hits) < FEW_ERRORS:
        low, high = exact(hits, n)
        return Share(hits / n, low, high, n, "Clopper-Pearson")
    interval = wilson(hits, n)
    assert interval is not None
    return Share(hits / n, *interval, n, "Wilson")


def mean_share(values: Sequence[float]) -> Share | None:
    """Return the mean of values from 0 to 1 as a share; one half, for a tie, varies less than Wilson allows for."""
    if all(v in (0.0, 1.0) for v in values):
        return share(round(math.fsum(values)), len(values))
    value = _mean(values)
    return Share(value, *_wilson(value, len(values)), len(values), "Wilson")


def exact(hits: int, n: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Return the exact binomial interval of a share: it covers at least `level` whatever the share is."""
    tail = (1 - level) / 2
    low = 0.0 if hits == 0 else _root(lambda p: 1 - _cdf(hits - 1, n, p) - tail)
    high = 1.0 if hits == n else _root(lambda p: tail - _cdf(hits, n, p))
    return low, high


def _cdf(k: int, n: int, p: float) -> float:
    """Return P(X <= k) of a binomial."""
    if p <= 0 or p >= 1:
        return 1.0 if p <= 0 or k >= n else 0.0
    lp, lq = math.log(p), math.log1p(-p)
    terms = (
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) + i * lp + (n - i) * lq for i in range(k + 1)
    )
    return math.fsum(math.exp(t) for t in terms)


def _root(rising: Callable[[float], float]) -> float:
    """Return where a rising function on [0, 1] crosses zero."""
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rising(middle) < 0 else (low, middle)
    return (low + high) / 2


class Stratum(NamedTuple):
    """What is known of one stratum."""

    size: int
    """Its comparisons in the population."""
    n: int
    """Of those, looked at by people with a usable answer."""
    hits: int
    """Of these, judged right."""


def weighted(strata: Mapping[str, Stratum]) -> Share | None:
    """Return the share over the population from items drawn with different chances in each stratum.

    The mean of each stratum counts by the stratum's size (post-stratification). Strata with fewer than two items are
    put together with the largest one. The interval is Wilson's with the effective sample size of the weighted mean
    (Korn and Graubard 1998); each stratum's variance is taken at (hits + 1) / (n + 2), so that a stratum without an
    error does not count as one that cannot err.
    """
    joined = _joined(strata)
    whole = sum(s.size for s in joined)
    if not whole:
        return None
    value = sum(s.size / whole * s.hits / s.n for s in joined)
    smooth = [(s.size / whole, (s.hits + 1) / (s.n + 2), s.n) for s in joined]
    variance = sum(w * w * p * (1 - p) / n for w, p, n in smooth)
    centre = sum(w * p for w, p, _ in smooth)
    n = sum(s.n for s in joined)
    effective = min(float(n), centre * (1 - centre) / variance) if len(joined) > 1 else float(n)
    interval = _wilson(value, effective)
    return Share(value, *interval, n, "stratum-weighted, Wilson at the effective sample size")


def _joined(strata: Mapping[str, Stratum]) -> list[Stratum]:
    usable = sorted((s for s in strata.values() if s.n >= 2), key=lambda s: -s.size)
    small = [s for s in strata.values() if 0 < s.n < 2 or (s.n == 0 and s.size)]
    if not usable:
        total = Stratum(sum(s.size for s in small), sum(s.n for s in small), sum(s.hits for s in small))
        return [total] if total.n else []
    first = usable[0]
    usable[0] = Stratum(
        first.size + sum(s.size for s in small),
        first.n + sum(s.n for s in small),
        first.hits + sum(s.hits for s in small),
    )
    return usable


def _wilson(p: float, n: float) -> tuple[float, float]:
    z2 = _Z * _Z
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


def powered(
    people: Sequence[float], judge: Sequence[float], judge_all: Sequence[float], *, lam: float | None = None
) -> tuple[float, float, float]:
    """Return (value, low, high) of people's mean, prediction-powered by the judge (Angelopoulos et al. 2023, PPI++).

    `people` and `judge` are values of the same items, `judge_all` the judge's on the rest of the population. `lam` is
    the weight of the judge; None takes the one that makes the interval shortest, within 0 and 1.
    """
    n, big = len(people), len(judge_all)
    if lam is None:
        lam = _tuned(people, judge, judge_all)
    rest = [y - lam * f for y, f in zip(people, judge, strict=True)]
    value = lam * _mean(judge_all) + _mean(rest)
    half = _Z * math.sqrt(lam * lam * _variance(judge_all) / big + _variance(rest) / n)
    return value, value - half, value + half


def _tuned(people: Sequence[float], judge: Sequence[float], judge_all: Sequence[float]) -> float:
    spread = _variance([*judge, *judge_all])
    if not spread:
        return 0.0
    mean_y, mean_f = _mean(people), _mean(judge)
    together = sum((y - mean_y) * (f - mean_f) for y, f in zip(people, judge, strict=True)) / len(people)
    return min(1.0, max(0.0, together / ((1 + len(people) / len(judge_all)) * spread)))


def why_not_powered(n: int, n_disagreements: int) -> str | None:
    """Return why a prediction-powered interval is not to be trusted here; None where it is."""
    if n < PPI_LEAST_N:
        return f"{n} human {'label' if n == 1 else 'labels'}, and fewer than {PPI_LEAST_N} make its interval too short"
    if n_disagreements < PPI_LEAST_DISAGREEMENTS:
        return (
            f"judge and people differ on {n_disagreements} items, and fewer than {PPI_LEAST_DISAGREEMENTS} make its "
            "interval too short"
        )
    return None


def rogan_gladen(rate: float, specificity: float, sensitivity: float) -> float | None:
    """Return the true rate behind a judged one (Rogan and Gladen 1978), within 0 and 1.

    None where the judge tells so little (specificity + sensitivity ≤ 1.05) that the correction means nothing.
    """
    if specificity + sensitivity <= 1.05:
        return None
    return min(1.0, max(0.0, (rate + specificity - 1) / (specificity + sensitivity - 1)))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _variance(values: Sequence[float]) -> float:
    middle = _mean(values)
    return math.fsum((v - middle) ** 2 for v in values) / len(values)
