"""Estimates: golden values, and intervals that cover what they promise."""

from __future__ import annotations

import math
import random
from collections import Counter

import numpy as np
import pytest

from cai.evaluate.intervals import wilson
from cai.review import estimate
from cai.review.estimate import Stratum, exact, mean_share, powered, rogan_gladen, share, weighted, why_not_powered
from cai.review.queues import ESTIMATE, Member, draw

Y = [1, 0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 1, 0, 1, 1, 0, 1, 1, 1] * 3
F = [1 - y if i in (1, 7, 20, 33, 41, 52) else y for i, y in enumerate(Y)]
F_ALL = ([1] * 13 + [0] * 7) * 25


def test_exact_interval_has_its_golden_value_and_equals_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    assert exact(0, 50) == (0.0, pytest.approx(0.07112, abs=5e-6))
    assert wilson(0, 50) == (0.0, pytest.approx(0.07135, abs=5e-6))
    for hits, n in ((0, 7), (3, 50), (48, 50), (50, 50), (137, 140)):
        assert exact(hits, n) == pytest.approx(proportion.proportion_confint(hits, n, method="beta"), abs=1e-9)


def test_so_many_are_drawn_that_an_accuracy_of_nine_in_ten_is_known_to_five_points() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    wanted = proportion.samplesize_confint_proportion(0.9, 0.05)
    assert wanted == pytest.approx(138.3, abs=0.05) and math.ceil(wanted) == 139 <= ESTIMATE


def test_wilson_takes_over_where_errors_are_not_few() -> None:
    few, many = share(136, 140), share(126, 140)
    assert few is not None and many is not None and share(0, 0) is None
    assert (few.method, many.method) == ("Clopper-Pearson", "Wilson")


def test_prediction_powered_mean_has_its_golden_values() -> None:
    assert powered(Y, F, F_ALL, lam=1.0) == pytest.approx((0.6166667, 0.5267825, 0.7065508), abs=1e-6)
    assert powered(Y, F, F_ALL) == pytest.approx((0.64925, 0.56695, 0.73165), abs=1e-4)


def test_a_mean_with_ties_keeps_them_and_without_them_is_a_share() -> None:
    assert mean_share([1.0, 0.0, 1.0]) == share(2, 3)
    found = mean_share([1.0, 0.5, 0.5, 0.0] * 5 + [0.5])
    assert found is not None and found.value == 0.5 and found.low < 0.5 < found.high and found.method == "Wilson"


def test_prediction_powered_is_refused_outside_its_safe_range() -> None:
    assert "99 human labels" in (why_not_powered(99, 50) or "")
    assert "19 items" in (why_not_powered(400, 19) or "")
    assert why_not_powered(100, 20) is None


def test_rogan_gladen_has_its_golden_value_and_refuses_a_judge_that_tells_nothing() -> None:
    assert rogan_gladen(0.72, 0.85, 0.9) == pytest.approx(0.76)
    assert rogan_gladen(0.72, 0.5, 0.55) is None and rogan_gladen(0.01, 0.9, 0.9) == 0.0


def test_one_stratum_weighted_is_wilson_and_equal_strata_are_the_plain_mean() -> None:
    one = weighted({"plain": Stratum(1000, 140, 126)})
    plain = share(126, 140)
    assert one is not None and plain is not None
    assert (one.value, one.low, one.high) == pytest.approx((plain.value, plain.low, plain.high))
    two = weighted({"x": Stratum(500, 70, 63), "y": Stratum(500, 70, 63)})
    assert two is not None and two.value == pytest.approx(0.9)


def test_a_stratum_nobody_looked_at_is_counted_with_the_largest_one() -> None:
    found = weighted({"x": Stratum(900, 100, 90), "y": Stratum(100, 0, 0), "z": Stratum(50, 1, 0)})
    assert found is not None and found.value == pytest.approx(90 / 101)
    assert weighted({"x": Stratum(10, 0, 0)}) is None


# -- coverage, by simulation -----------------------------------------------------------------------------------------


SIZES = {"plain": 0.8, "low-margin": 0.15, "flagged": 0.05}
RIGHT = {"plain": 0.96, "low-margin": 0.68, "flagged": 0.60}
"""Shares of a population, and how often the judge is right in each: 0.90 overall."""


def members(size: int = 1000) -> list[Member]:
    """A population as `queues.draw` takes it."""
    names = [name for name, part in SIZES.items() for _ in range(round(part * size))]
    return [Member(f"{i}", name, ()) for i, name in enumerate(names)]


@pytest.mark.parametrize(("n_estimate", "n_value"), [(140, 0), (140, 60), (100, 100)])
def test_planted_truth_is_covered_also_with_half_of_the_reviews_from_the_value_queue(
    n_estimate: int, n_value: int
) -> None:
    """Both queues are drawn as they are for people; a reviewer who is always right says where the judge is."""
    dice, drawable, covered = random.Random(7), members(), []
    assert sum(SIZES[name] * RIGHT[name] for name in SIZES) == pytest.approx(0.90)
    for seed in range(2000):
        drawn = draw(drawable, n_estimate, n_value, seed=seed, taken={})
        looked_at = Counter(d.member.stratum for d in drawn)
        hits = {name: sum(dice.random() < RIGHT[name] for _ in range(n)) for name, n in looked_at.items()}
        found = weighted(
            {name: Stratum(round(part * 1000), looked_at[name], hits.get(name, 0)) for name, part in SIZES.items()}
        )
        assert found is not None and found.n == n_estimate + n_value
        covered.append(found.low <= 0.90 <= found.high)
    assert sum(covered[:1000]) >= 930 and sum(covered[1000:]) >= 930


@pytest.mark.parametrize("ties", [0.05, 0.2])
def test_the_interval_of_a_mean_with_ties_covers_what_it_promises(ties: float) -> None:
    dice, truth = np.random.default_rng(19), 0.8 * (1 - ties) + ties / 2
    drawn = Counter(map(tuple, dice.multinomial(140, [0.8 * (1 - ties), ties, 0.2 * (1 - ties)], size=2000)))
    found = {n: mean_share([1.0] * n[0] + [0.5] * n[1] + [0.0] * n[2]) for n in drawn}
    assert sum(times for n, times in drawn.items() if (s := found[n]) and s.low <= truth <= s.high) >= 0.93 * 2000


@pytest.mark.parametrize(("n", "rate"), [(50, 0.9), (140, 0.9), (140, 0.97), (140, 0.6)])
def test_the_headline_interval_covers_what_it_promises(n: int, rate: float) -> None:
    dice = random.Random(11)
    drawn = Counter(sum(dice.random() < rate for _ in range(n)) for _ in range(2000))
    found = {hits: share(hits, n) for hits in drawn}  # one interval for every count that came up
    covered = sum(times for hits, times in drawn.items() if (s := found[hits]) and s.low <= rate <= s.high)
    assert covered >= 0.93 * drawn.total() == 0.93 * 2000


@pytest.mark.parametrize(("n", "rate", "right"), [(100, 0.6, 0.7), (200, 0.6, 0.85), (400, 0.9, 0.93)])
def test_the_prediction_powered_interval_covers_what_it_promises_inside_its_range(
    n: int, rate: float, right: float
) -> None:
    dice, covered, tried = random.Random(13), 0, 0
    while tried < 2000:
        truth = [float(dice.random() < rate) for _ in range(400 + n)]
        judge = [t if dice.random() < right else 1 - t for t in truth]
        n_disagreements = sum(t != j for t, j in zip(truth[:n], judge[:n], strict=True))
        if why_not_powered(n, n_disagreements) is not None:
            continue
        tried += 1
        _, low, high = powered(truth[:n], judge[:n], judge[n:])
        covered += low <= rate <= high
    assert covered >= 0.93 * 2000


def test_the_level_is_the_one_of_all_intervals() -> None:
    assert estimate.LEVEL == 0.95
