"""How far raters agree beyond chance: people among themselves, or a judge with people.

A rating is a label such as `a`, `b` or `tie`; `None` is one that was not given. `ratings` has one row per item and one
place per rater in it. Every coefficient is a function of column totals over rows of numbers, one row per item, so that
the bootstrap of `intervals` serves them all, clustered by prompt where items of one prompt resemble each other.

Cohen's kappa falls towards 0 where nearly all items have one label, although the raters agree; Gwet's AC1 does not.
That is why both are shown.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from cai.evaluate.intervals import RESAMPLES, Estimate, Totals, estimate, wilson

Label = str | int
Ratings = Sequence[Sequence[Label | None]]


@dataclass(frozen=True, slots=True)
class Coefficient:
    """A measure of agreement: the row of numbers an item adds, and the value of their totals."""

    name: str
    row: Callable[[Sequence[Label | None], Sequence[Label]], list[float]]
    """(ratings of one item, all labels) → its numbers."""
    value: Callable[[Totals, int], float | None]
    """(column totals, number of labels) → the coefficient; None where chance alone would agree always."""

    def of(self, ratings: Ratings, *, labels: Sequence[Label] | None = None) -> float | None:
        """Return the coefficient, at most 1; None where it is not defined. `labels` adds labels nobody gave."""
        known = labels_of(ratings, labels)
        rows = [self.row(item, known) for item in ratings]
        return self.value([math.fsum(c) for c in zip(*rows, strict=True)], len(known)) if rows else None

    def estimate(
        self,
        ratings: Ratings,
        *,
        clusters: Sequence[Hashable] | None = None,
        labels: Sequence[Label] | None = None,
        seed: int = 0,
        resamples: int = RESAMPLES,
    ) -> Estimate | None:
        """Return the coefficient with its bootstrap interval; items of one cluster are drawn together."""
        known = labels_of(ratings, labels)
        summed: dict[Hashable, list[float]] = {}
        for place, item in enumerate(ratings):
            row = self.row(item, known)
            key = place if clusters is None else clusters[place]
            summed[key] = [x + y for x, y in zip(summed[key], row, strict=True)] if key in summed else row
        return estimate(
            list(summed.values()), lambda totals: self.value(totals, len(known)), seed=seed, resamples=resamples
        )


def labels_of(ratings: Ratings, labels: Sequence[Label] | None = None) -> list[Label]:
    """Return the labels that occur, and those given, in a fixed order."""
    found = {label for item in ratings for label in item if label is not None} | set(labels or ())
    return sorted(found, key=lambda label: (str(type(label)), label))


def _counts(item: Sequence[Label | None], labels: Sequence[Label]) -> list[int]:
    given = Counter(label for label in item if label is not None)
    return [given[label] for label in labels]


# -- two raters ------------------------------------------------------------------------------------------------------


def _cell(item: Sequence[Label | None], labels: Sequence[Label]) -> list[float]:
    """Return the q x q table of one item, row by row; zeros where a rating is missing. Raises ValueError."""
    if len(item) != 2:
        raise ValueError(f"found {len(item)} ratings of an item; Cohen's kappa compares two raters")
    return [float(item[0] == one and item[1] == other) for one in labels for other in labels]


def _kappa(totals: Totals, q: int) -> float | None:
    n = sum(totals)
    if not n:
        return None
    agreed = sum(totals[i * q + i] for i in range(q)) / n
    first = [sum(totals[i * q : (i + 1) * q]) / n for i in range(q)]
    second = [sum(totals[i::q]) / n for i in range(q)]
    chance = sum(x * y for x, y in zip(first, second, strict=True))
    return _beyond(agreed, chance)


def _beyond(agreed: float, chance: float) -> float | None:
    return None if chance >= 1 - 1e-12 else (agreed - chance) / (1 - chance)


# -- any number of raters, ratings may be missing --------------------------------------------------------------------


def _pairwise(counts: Sequence[int]) -> float:
    """Return the share of pairs of ratings of one item that agree; there must be at least two ratings."""
    n = sum(counts)
    return sum(c * (c - 1) for c in counts) / (n * (n - 1))


def _ac1_row(item: Sequence[Label | None], labels: Sequence[Label]) -> list[float]:
    counts = _counts(item, labels)
    n = sum(counts)
    agreed = [_pairwise(counts), 1.0] if n > 1 else [0.0, 0.0]
    return [*agreed, float(n > 0), *(c / n if n else 0.0 for c in counts)]


def _ac1(totals: Totals, q: int) -> float | None:
    agreed, n_paired, n_rated, *used = totals
    if not n_paired:
        return None
    shares = [u / n_rated for u in used]
    chance = sum(s * (1 - s) for s in shares) / (q - 1) if q > 1 else 0.0
    return _beyond(agreed / n_paired, chance)


def _fleiss_row(item: Sequence[Label | None], labels: Sequence[Label]) -> list[float]:
    """As for AC1, with ratings instead of items counted; only items that every rater has rated."""
    counts = _counts(item, labels)
    if sum(counts) < len(item) or len(item) < 2:
        return [0.0] * (2 + len(labels))
    return [_pairwise(counts), 1.0, *(float(c) for c in counts)]


def _fleiss(totals: Totals, q: int) -> float | None:
    agreed, n, *used = totals
    if not n:
        return None
    return _beyond(agreed / n, sum((u / sum(used)) ** 2 for u in used))


def _alpha_row(item: Sequence[Label | None], labels: Sequence[Label]) -> list[float]:
    """Return (coincidences that agree, ratings per label) of an item with at least two ratings."""
    counts = _counts(item, labels)
    n = sum(counts)
    if n < 2:
        return [0.0] * (1 + len(labels))
    return [sum(c * (c - 1) for c in counts) / (n - 1), *(float(c) for c in counts)]


def _alpha(totals: Totals, q: int) -> float | None:
    agreed, *used = totals
    n = sum(used)
    if n < 2:
        return None
    chance = sum(u * (u - 1) for u in used) / (n * (n - 1))
    return _beyond(agreed / n, chance)


def _observed_row(item: Sequence[Label | None], labels: Sequence[Label]) -> list[float]:
    counts = _counts(item, labels)
    return [_pairwise(counts), 1.0] if sum(counts) > 1 else [0.0, 0.0]


def _observed(totals: Totals, q: int) -> float | None:
    return totals[0] / totals[1] if totals[1] else None


OBSERVED = Coefficient("observed agreement", _observed_row, _observed)
"""Share of pairs of ratings that agree, mean over items; chance is not taken out."""
KAPPA = Coefficient("Cohen's kappa", _cell, _kappa)
"""Two raters (Cohen 1960)."""
AC1 = Coefficient("Gwet's AC1", _ac1_row, _ac1)
"""Two or more raters, ratings may be missing (Gwet 2008, eq. 5); stays sound where one label prevails."""
ALPHA = Coefficient("Krippendorff's alpha", _alpha_row, _alpha)
"""Two or more raters, ratings may be missing; labels without order (Krippendorff 2011, nominal)."""
FLEISS = Coefficient("Fleiss' kappa", _fleiss_row, _fleiss)
"""Two or more raters; only items that all have rated count (Fleiss 1971)."""

COEFFICIENTS = {"observed": OBSERVED, "kappa": KAPPA, "ac1": AC1, "alpha": ALPHA, "fleiss": FLEISS}


def ac1_error(ratings: Ratings) -> float | None:
    """Return the standard error of AC1 over items as a sample of all items (Gwet 2014, §5.4); None below two items."""
    labels = labels_of(ratings)
    rows = [_ac1_row(item, labels) for item in ratings]
    rated = [row for row in rows if row[2]]
    n, q = len(rated), len(labels)
    ac1 = AC1.of(ratings)
    if n < 2 or ac1 is None:
        return None
    shares = [sum(row[3 + k] for row in rated) / n for k in range(q)]
    chance = sum(s * (1 - s) for s in shares) / (q - 1) if q > 1 else 0.0
    paired = sum(row[1] for row in rated)
    deviations = []
    for row in rated:
        own = (n / paired) * (row[0] - chance * row[1]) / (1 - chance)
        own_chance = sum(row[3 + k] * (1 - shares[k]) for k in range(q)) / (q - 1) if q > 1 else 0.0
        deviations.append(own - 2 * (1 - ac1) * (own_chance - chance) / (1 - chance) - ac1)
    return math.sqrt(sum(d * d for d in deviations) / (n * (n - 1)))


# -- tables ----------------------------------------------------------------------------------------------------------


def confusion(
    pairs: Sequence[tuple[Label | None, Label | None]], labels: Sequence[Label] | None = None
) -> dict[Label, dict[Label, int]]:
    """Return how often the second rater said what, per label of the first; items that miss a rating are left out."""
    known = labels_of(pairs, labels)
    found = Counter(pairs)
    return {one: {other: found[one, other] for other in known} for one in known}


def from_table(table: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """Return the ratings of two raters that make this table of counts; labels are the places 0, 1, …"""
    return [(i, j) for i, row in enumerate(table) for j, n in enumerate(row) for _ in range(n)]


def mcc(table: Sequence[Sequence[int]]) -> float | None:
    """Return Matthews' correlation of a 2 x 2 table, -1 to 1; None where a margin is empty."""
    (tp, fn), (fp, tn) = table
    under = (tp + fn) * (fp + tn) * (tp + fp) * (fn + tn)
    return (tp * tn - fp * fn) / math.sqrt(under) if under else None


def agreement(
    pairs: Sequence[tuple[Label | None, Label | None]],
    *,
    clusters: Sequence[Hashable] | None = None,
    labels: Sequence[Label] | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return two raters' agreement as JSON can say it.

    `n` items that both have rated, `agreed` of them alike, `accuracy` with its Wilson interval (an item counts once),
    `kappa` and `ac1` with bootstrap intervals, `confusion` (first rater's label, then the second's).
    """
    both = [(one, other) for one, other in pairs if one is not None and other is not None]
    agreed = sum(one == other for one, other in both)
    interval = wilson(agreed, len(both))
    told: dict[str, Any] = {
        "n": len(both),
        "agreed": agreed,
        "accuracy": None
        if interval is None
        else {"value": agreed / len(both), "low": interval[0], "high": interval[1]},
        "confusion": confusion(both, labels),
    }
    for name in ("kappa", "ac1"):
        found = COEFFICIENTS[name].estimate(pairs, clusters=clusters, labels=labels, seed=seed)
        told[name] = found.as_dict() if found else None
    return told
