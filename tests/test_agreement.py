"""Agreement beyond chance has the values that the literature's tools give."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest

from cai.evaluate import agreement
from cai.evaluate.agreement import AC1, ALPHA, FLEISS, KAPPA, OBSERVED, from_table

SKEWED = from_table([[118, 5], [2, 0]])
N = None
R = [[0, 0, 0], [0, 0, 1], [1, 1, 1], [2, 2, 0], [1, 1, N], [0, N, 0],
     [2, 1, 2], [0, 0, 0], [1, 0, 1], [2, 2, 2], [1, 1, 1], [0, 1, N]]  # fmt: skip
"""Twelve items, three raters, gaps."""


@pytest.mark.parametrize(
    ("coefficient", "ratings", "golden"),
    [
        (KAPPA, SKEWED, -0.02339),
        (AC1, SKEWED, 0.94078),
        (ALPHA, SKEWED, -0.02469),
        (AC1, R, 0.5514),
        (ALPHA, R, 0.544160),
        (FLEISS, R, 0.5500),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_golden_values(coefficient, ratings, golden) -> None:
    digits = len(str(golden).partition(".")[2])
    assert coefficient.of(ratings) == pytest.approx(golden, abs=0.6 * 10**-digits)


def test_golden_error_of_ac1_and_mcc() -> None:
    assert agreement.ac1_error(SKEWED) == pytest.approx(0.02306, abs=6e-6)
    assert agreement.mcc([[118, 5], [2, 0]]) == pytest.approx(-0.02603, abs=6e-6)


@pytest.mark.parametrize("coefficient", [KAPPA, AC1, ALPHA, FLEISS, OBSERVED], ids=lambda c: c.name)
def test_perfect_agreement_is_one_and_the_order_of_items_does_not_matter(coefficient) -> None:
    alike = [("a", "a")] * 5 + [("b", "b")] * 3 + [("tie", "tie")]
    assert coefficient.of(alike) == pytest.approx(1.0)
    mixed = [*alike, ("a", "b"), ("tie", "b")]
    assert coefficient.of(mixed) == pytest.approx(coefficient.of(mixed[::-1]))
    assert coefficient.of(mixed) < 1


@pytest.mark.parametrize("coefficient", [KAPPA, AC1, ALPHA], ids=lambda c: c.name)
def test_raters_who_toss_coins_agree_by_chance(coefficient) -> None:
    rng = random.Random(3)
    tossed = [(rng.choice("ab"), rng.choice("ab")) for _ in range(4000)]
    found = coefficient.estimate(tossed, resamples=200)
    assert found is not None and abs(found.value) < 0.05
    assert found.low < 0 < found.high and not found.is_clear


def test_one_label_throughout_leaves_kappa_undefined_but_not_ac1() -> None:
    assert KAPPA.of([("a", "a")] * 9) is None
    assert ALPHA.of([("a", "a")] * 9) is None
    assert AC1.of([("a", "a")] * 9, labels=["a", "b"]) == 1.0


def test_nothing_rated_gives_nothing() -> None:
    for coefficient in (KAPPA, AC1, ALPHA, FLEISS, OBSERVED):
        assert coefficient.of([]) is None
        assert coefficient.of([(None, None), ("a", None)]) is None


def test_clusters_widen_an_interval_of_repeated_items() -> None:
    rng = random.Random(5)
    items = [("a", rng.choice("ab")) if rng.random() < 0.5 else ("b", rng.choice("bba")) for _ in range(40)]
    repeated = [item for item in items for _ in range(6)]
    alone = KAPPA.estimate(repeated, resamples=400)
    together = KAPPA.estimate(repeated, clusters=[i // 6 for i in range(240)], resamples=400)
    assert alone is not None and together is not None
    assert together.value == pytest.approx(alone.value)
    assert together.high - together.low > 1.5 * (alone.high - alone.low)


def test_confusion_counts_what_both_have_rated() -> None:
    pairs = [("a", "a"), ("a", "b"), ("b", "b"), (None, "a"), ("a", None), ("tie", "a")]
    table = agreement.confusion(pairs)
    assert table["a"] == {"a": 1, "b": 1, "tie": 0}
    assert sum(sum(row.values()) for row in table.values()) == 4


def test_agreement_tells_the_whole() -> None:
    told = agreement.agreement([("a", "a")] * 30 + [("b", "a")] * 10 + [(None, "a")] * 7)
    assert (told["n"], told["agreed"]) == (40, 30)
    assert told["accuracy"]["value"] == 0.75 and told["accuracy"]["low"] < 0.75 < told["accuracy"]["high"]
    assert told["kappa"]["value"] == pytest.approx(0.0)


def test_kappa_refuses_three_raters() -> None:
    with pytest.raises(ValueError, match="two raters"):
        KAPPA.of(R)


def test_same_values_as_scikit_learn_and_statsmodels() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    inter_rater = pytest.importorskip("statsmodels.stats.inter_rater")
    rng = random.Random(11)
    for _ in range(20):
        pairs = [(rng.choice("aabt"), rng.choice("abbt")) for _ in range(60)]
        theirs = metrics.cohen_kappa_score([p[0] for p in pairs], [p[1] for p in pairs])
        assert KAPPA.of(pairs) == pytest.approx(theirs)
        rows = [[rng.randrange(3) for _ in range(4)] for _ in range(30)]
        table, _ = inter_rater.aggregate_raters(rows)
        assert FLEISS.of(rows) == pytest.approx(inter_rater.fleiss_kappa(table))


# -- coverage, by simulation -----------------------------------------------------------------------------------------


def kappa_of(totals: Any, q: int) -> Any:
    table = totals.reshape(*totals.shape[:-1], q, q)
    n = table.sum((-1, -2))
    agreed, chance = table.trace(axis1=-2, axis2=-1) / n, (table.sum(-1) * table.sum(-2)).sum(-1) / n**2
    return (agreed - chance) / (1 - chance)


def ac1_of(totals: Any, q: int) -> Any:
    shares = totals[..., 3:] / totals[..., 2:3]
    chance = (shares * (1 - shares)).sum(-1) / (q - 1)
    return (totals[..., 0] / totals[..., 1] - chance) / (1 - chance)


def alpha_of(totals: Any, q: int) -> Any:
    used = totals[..., 1:]
    n = used.sum(-1)
    chance = (used * (used - 1)).sum(-1) / (n * (n - 1))
    return (totals[..., 0] / n - chance) / (1 - chance)


@pytest.mark.parametrize(
    "chances",
    [
        [[0.4, 0.1], [0.1, 0.4]],
        [[0.6, 0.06], [0.06, 0.28]],
        [[0.4, 0.04, 0.02], [0.04, 0.36, 0.02], [0.02, 0.02, 0.08]],
    ],
    ids=["even", "uneven", "with ties"],
)
def test_bootstrap_intervals_cover_what_they_promise(chances: list[list[float]]) -> None:
    """2,000 runs of 140 items; drawing items anew is drawing the cells of their table anew."""
    q, cells = len(chances), np.array(chances).ravel()
    dice = np.random.default_rng(17)
    seen = dice.multinomial(140, cells, size=2000)
    again = dice.multinomial(140, seen[:, None, :] / 140, size=(2000, 400))
    places = [(i, j) for i in range(q) for j in range(q)]
    for measure, many in ((KAPPA, kappa_of), (AC1, ac1_of), (ALPHA, alpha_of)):
        rows = np.array([measure.row(place, range(q)) for place in places])
        for totals in again[0, :20] @ rows:
            assert many(totals, q) == pytest.approx(measure.value(list(totals), q))
        truth = measure.value(list(1e9 * (cells @ rows)), q)
        low, high = np.quantile(many(again @ rows, q), [0.025, 0.975], axis=1)
        assert ((low <= truth) & (truth <= high)).sum() >= 0.93 * 2000, measure.name
        items = [[place for place, n in zip(places, cells_, strict=True) for _ in range(n)] for cells_ in seen[:5]]
        ours = [measure.estimate(rated, labels=range(q), resamples=400) for rated in items]
        assert np.mean([e.low for e in ours]) == pytest.approx(low[:5].mean(), abs=0.02), "what is simulated is used"
        assert np.mean([e.high for e in ours]) == pytest.approx(high[:5].mean(), abs=0.02)
