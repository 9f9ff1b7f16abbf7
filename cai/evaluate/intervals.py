"""Intervals: Wilson for a share of independent trials, a bootstrap over prompts for everything that repeats per prompt.

Several answers to one prompt resemble each other, so the prompt is what is drawn anew: a cluster is one row of sums
and counts, and a statistic is a function of the rows' column totals, such as a mean (sum over count).
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from operator import itemgetter
from statistics import NormalDist
from typing import Any

LEVEL = 0.95
"""Confidence level of every interval."""
RESAMPLES = 2000
"""Bootstrap resamples."""
LEAST_CLUSTERS = 8
"""Below so many prompts a bootstrap promises more than it keeps, and no interval is given."""
METHOD = (
    f"{LEVEL:.0%} percentile bootstrap, {RESAMPLES} seeded resamples of whole prompts (answers to one prompt stay "
    f"together); none below {LEAST_CLUSTERS} prompts"
)

Totals = Sequence[float]
Statistic = Callable[[Totals], float | None]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and how far chance alone could move it."""

    value: float
    """The figure itself."""
    low: float | None
    """Lower end of the interval; None where there are too few prompts for one."""
    high: float | None
    """Upper end."""
    n_prompts: int
    """Prompts that say something about it."""
    is_clear: bool
    """Whether the interval excludes the value of no effect."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return asdict(self)


def wilson(n_hits: float, n: float, *, level: float = LEVEL) -> tuple[float, float] | None:
    """Return the Wilson score interval of a share (Wilson 1927); None of nothing. `n` may be an effective size."""
    if not n:
        return None
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    p = n_hits / n
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (p * (1 - p) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    # Rounding must not push the share itself out of its interval.
    return max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))


class ClusteredShare:
    """A share of trials that come in clusters, such as judgments on one prompt, counted cluster by cluster.

    Its interval is Wilson's at the effective sample size: as many independent trials as would vary so much (Kish 1965;
    the variance is that of a ratio over clusters), never more than there are trials. Where all came out the same the
    clusters tell no variance, and each counts as one trial.
    """

    def __init__(self) -> None:
        self.n_hits = self.n = self.n_clusters = 0
        self._squares = (0, 0, 0)

    def add(self, n_hits: int, n: int) -> None:
        """Count one cluster of `n` trials."""
        hh, hn, nn = self._squares
        self._squares = hh + n_hits * n_hits, hn + n_hits * n, nn + n * n
        self.n_hits, self.n, self.n_clusters = self.n_hits + n_hits, self.n + n, self.n_clusters + 1

    def interval(self) -> tuple[float, float] | None:
        """Return the interval; None of nothing."""
        n = self._effective() if self.n else 0
        return wilson(self.n_hits / self.n * n, n) if n else None

    def _effective(self) -> float:
        p, m = self.n_hits / self.n, self.n_clusters
        if m < 2 or self.n_hits in (0, self.n):
            return m
        hh, hn, nn = self._squares
        variance = (hh - 2 * p * hn + p * p * nn) / self.n**2 * m / (m - 1)
        return min(float(self.n), p * (1 - p) / variance) if variance > 0 else self.n


def mean(totals: Totals) -> float | None:
    """Return the mean of rows (sum, count)."""
    return totals[0] / totals[1] if totals[1] else None


def difference(totals: Totals) -> float | None:
    """Return the second mean less the first, of rows (sum before, count, sum after, count)."""
    before, after = mean(totals[:2]), mean(totals[2:])
    return None if before is None or after is None else after - before


def ratio(totals: Totals) -> float | None:
    """Return the second mean over the first, of rows (sum before, count, sum after, count)."""
    before, after = mean(totals[:2]), mean(totals[2:])
    return after / before if before and after is not None else None


def estimate(
    rows: Sequence[Totals], statistic: Statistic, *, no_effect: float = 0.0, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate | None:
    """Return a statistic of the rows' totals with its interval; None where the statistic has no value.

    Every cluster is one row of equally many numbers. A row of zeros stands for a prompt that says nothing here.
    """
    columns = [list(column) for column in zip(*rows, strict=True)]
    value = statistic([math.fsum(column) for column in columns]) if rows else None
    if value is None:
        return None
    n_prompts = sum(any(row) for row in rows)
    drawn: list[float | None] = []
    if n_prompts >= LEAST_CLUSTERS:
        drawn = [statistic([sum(pick(c)) for c in columns]) for pick in _picks(len(rows), seed, resamples)]
    return spread(value, [v for v in drawn if v is not None], n_prompts, no_effect=no_effect)


def spread(value: float, drawn: Sequence[float], n_prompts: int, *, no_effect: float = 0.0) -> Estimate:
    """Return a figure with the percentile interval of what the resamples gave; without an interval where none did."""
    if not drawn:
        return Estimate(value, None, None, n_prompts, False)
    ordered = sorted(drawn)
    low, high = quantile(ordered, (1 - LEVEL) / 2), quantile(ordered, (1 + LEVEL) / 2)
    return Estimate(value, low, high, n_prompts, not low <= no_effect <= high)


def draws(n: int, seed: int, resamples: int = RESAMPLES) -> Iterator[list[int]]:
    """Yield, for each resample, how often it draws each of `n` prompts: the very resamples that `estimate` takes.

    Nothing is drawn below LEAST_CLUSTERS prompts. For figures that are fitted and no function of totals.
    """
    if n < LEAST_CLUSTERS:
        return
    for pick in _picks(n, seed, resamples):
        times = Counter(pick(range(n)))
        yield [times[i] for i in range(n)]


@lru_cache(maxsize=2)
def _picks(n: int, seed: int, resamples: int) -> tuple[Callable[[Sequence[float]], tuple[float, ...]], ...]:
    """Return the resamples as functions that pick their rows from a column; all figures share the same ones."""
    drawn, places = random.Random(seed), list(range(n))
    return tuple(itemgetter(*drawn.choices(places, k=n)) for _ in range(resamples))


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which `share` (0 to 1) of the ordered values lie, between two of them in proportion."""
    place = share * (len(ordered) - 1)
    below = math.floor(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
