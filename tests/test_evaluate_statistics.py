"""Strengths, length control and best-of-n: hand-worked numbers, golden values of another library, and symmetries."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from itertools import combinations, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.evaluate import bestof, ladder, lengths
from cai.evaluate.intervals import LEAST_CLUSTERS, RESAMPLES, ClusteredShare, draws, estimate, mean, wilson
from cai.evaluate.ladder import Game
from cai.evaluate.lengths import Match, controlled

NAMES = ("a", "b", "c", "d")
TABLE = ((0, 8, 3, 5), (4, 0, 6, 2), (7, 6, 0, 9), (5, 8, 1, 0))
"""Wins of row over column."""


def games_of(table: tuple[tuple[float, ...], ...], *, spread_over: int = 1) -> list[Game]:
    """Return games with these wins, dealt to prompts in turn."""
    scores = [
        (NAMES[i], NAMES[j], score)
        for i, j in combinations(range(len(table)), 2)
        for score, n in ((1.0, table[i][j]), (0.0, table[j][i]))
        for _ in range(int(n))
    ]
    return [Game(f"p{k % spread_over}", one, other, score) for k, (one, other, score) in enumerate(scores)]


def elos(games: list[Game], names: tuple[str, ...] = NAMES) -> dict[str, float]:
    told = ladder.ladder(games, names, seed=0)
    assert told is not None
    return {row["name"]: row["elo"]["value"] for row in told["policies"] if row["elo"]}


# -- ladder ----------------------------------------------------------------------------------------------------------


def test_strengths_meet_those_of_choix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "PRIOR", 0.0)
    golden = [0.0, -74.8000, 105.7092, -14.1732]  # choix 0.4.1, opt_pairwise and ilsr_pairwise, alpha = 0
    assert list(elos(games_of(TABLE)).values()) == pytest.approx(golden, abs=1e-3)


def test_two_policies_by_hand() -> None:
    told = elos(games_of(((0, 9), (3, 0))), ("a", "b"))
    assert told["b"] == pytest.approx(400 * math.log10(3.5 / 9.5))  # half a win each way beside 3 and 9
    assert ladder.foretold(told["b"], told["a"]) == pytest.approx(3.5 / 13)


def test_a_tie_is_half_a_win_for_each() -> None:
    tied = [Game("p", "a", "b", 0.5)] * 6
    won = [Game("p", "a", "b", 1.0)] * 3 + [Game("p", "a", "b", 0.0)] * 3
    assert elos(tied, ("a", "b")) == elos(won, ("a", "b"))


def test_who_won_everything_has_a_finite_strength() -> None:
    assert 300 < elos([Game("p", "b", "a", 1.0)] * 20, ("a", "b"))["b"] < 1500


def test_a_policy_that_nobody_met_has_no_strength() -> None:
    told = ladder.ladder([Game("p", "a", "b", 1.0)], ("a", "b", "c"), seed=0)
    assert told is not None and told["policies"][2]["elo"] is None and told["policies"][1]["elo"] is not None


def test_exact_probabilities_give_back_the_strengths_they_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "PRIOR", 0.0)
    truth = dict(zip(NAMES, (0.0, 120.0, -75.0, 310.0), strict=True))
    games = [Game("p", one, other, ladder.foretold(truth[one], truth[other])) for one, other in combinations(NAMES, 2)]
    assert elos(games) == pytest.approx(truth, abs=1e-2)


def test_the_order_of_names_only_moves_the_zero() -> None:
    games = games_of(TABLE)
    first = elos(games)
    for names in permutations(NAMES):
        told = elos(games, names)
        for name in NAMES:
            assert told[name] - told["a"] == pytest.approx(first[name], abs=1e-2)


def test_a_circle_of_wins_shows_in_the_fit() -> None:
    circle = [g for one, other in (("a", "b"), ("b", "c"), ("c", "a")) for g in [Game("p", one, other, 1.0)] * 30]
    told = ladder.ladder(circle, ("a", "b", "c"), seed=0)
    assert told is not None
    assert max(abs(pair["score"] - pair["foretold"]) for pair in told["fit"]) > 0.45


def test_intervals_are_of_prompts_and_hold_the_strength() -> None:
    told = ladder.ladder(games_of(TABLE, spread_over=30), NAMES, seed=1)
    assert told is not None
    for row in told["policies"][1:]:
        assert row["elo"]["low"] < row["elo"]["value"] < row["elo"]["high"] and row["elo"]["n_prompts"] == 30
    few = ladder.ladder(games_of(TABLE, spread_over=LEAST_CLUSTERS - 1), NAMES, seed=1)
    assert few is not None and few["policies"][1]["elo"]["low"] is None


# -- length control --------------------------------------------------------------------------------------------------

MATCHES = st.lists(
    st.tuples(st.integers(0, 9), st.sampled_from((0.0, 0.5, 1.0)), st.integers(-60, 60)), min_size=1, max_size=30
).map(lambda rows: [Match(f"p{p}", score, gap) for p, score, gap in rows])


@settings(deadline=None, max_examples=50)
@given(MATCHES)
def test_exchanging_the_policies_gives_one_minus_the_rate(matches: list[Match]) -> None:
    swapped = [Match(m.prompt_id, 1 - m.score, -m.gap) for m in matches]
    one, other = controlled(matches, seed=0), controlled(swapped, seed=0)
    assert one is not None and other is not None
    assert one["rate"]["value"] + other["rate"]["value"] == pytest.approx(1, abs=1e-9)
    assert one["longer_by_one_sd"] == pytest.approx(other["longer_by_one_sd"], abs=1e-9)


def test_a_policy_wins_half_of_the_time_against_itself() -> None:
    """Every game of a policy with itself stands there both ways, whatever length does to it."""
    dice = random.Random(3)
    seen = [Match(f"p{i}", float(dice.random() < 0.8), dice.randint(5, 90)) for i in range(40)]
    both = seen + [Match(m.prompt_id, 1 - m.score, -m.gap) for m in seen]
    told = controlled(both, seed=0)
    assert told is not None and told["rate"]["value"] == pytest.approx(0.5, abs=1e-9)
    assert told["longer_by_one_sd"] > 0.6


def test_without_a_difference_in_length_the_rate_is_the_win_rate() -> None:
    matches = [Match(f"p{i}", float(i < 15), 0) for i in range(20)]
    told = controlled(matches, seed=0)
    assert told is not None and told["rate"]["value"] == pytest.approx(15.5 / 21)


def test_a_win_rate_that_is_all_length_is_taken_back() -> None:
    """A judge that only prefers length, and a policy whose answers are mostly longer: 500 games."""
    dice, matches = random.Random(7), []
    for i in range(500):
        gap = round(dice.gauss(30, 40))
        longer_wins = 1 / (1 + math.exp(-2.5 * math.tanh(gap / 40)))
        matches.append(Match(f"p{i}", float(dice.random() < longer_wins), gap))
    told = controlled(matches, seed=0)
    raw = sum(m.score for m in matches) / len(matches)
    assert told is not None and raw > 0.68
    assert abs(told["rate"]["value"] - 0.5) < 0.07 and told["rate"]["low"] < 0.5 < told["rate"]["high"]


def test_a_win_rate_in_spite_of_length_is_raised() -> None:
    """The policy is better, its answers shorter, and the judge likes length."""
    dice, matches = random.Random(8), []
    for i in range(500):
        gap = round(dice.gauss(-30, 40))
        wins = 1 / (1 + math.exp(-1.0 - 2.5 * math.tanh(gap / 40)))
        matches.append(Match(f"p{i}", float(dice.random() < wins), gap))
    told = controlled(matches, seed=0)
    assert told is not None and told["rate"]["value"] > sum(m.score for m in matches) / len(matches) + 0.1
    assert told["rate"]["value"] == pytest.approx(1 / (1 + math.exp(-1)), abs=0.08)


def test_the_coefficients_are_those_of_statsmodels(monkeypatch: pytest.MonkeyPatch) -> None:
    api = pytest.importorskip("statsmodels.api")
    import numpy as np

    monkeypatch.setattr(lengths, "PRIOR", 0.0)
    monkeypatch.setattr(lengths, "_RIDGE", 0.0)
    dice = random.Random(9)
    matches = [Match(f"p{i}", float(dice.random() < 0.6), dice.randint(-50, 60)) for i in range(200)]
    gaps = np.array([m.gap for m in matches], dtype=float)
    x = np.tanh(gaps / gaps.std())
    found = api.GLM([m.score for m in matches], api.add_constant(x), family=api.families.Binomial()).fit(tol=1e-12)
    told = controlled(matches, seed=0)
    assert told is not None and told["rate"]["value"] == pytest.approx(1 / (1 + math.exp(-found.params[0])), abs=1e-7)
    assert told["longer_by_one_sd"] == pytest.approx(1 / (1 + math.exp(-found.params[1] * math.tanh(1))), abs=1e-7)


def test_without_matches_there_is_no_rate() -> None:
    assert controlled([], seed=0) is None and ladder.ladder([], NAMES, seed=0) is None


# -- best of n -------------------------------------------------------------------------------------------------------


def test_best_of_n_by_hand() -> None:
    scored = [(1.0, 0.0), (2.0, 1.0), (3.0, 0.0)]
    assert bestof.expected(scored, 1) == pytest.approx(1 / 3)
    assert bestof.expected(scored, 2) == pytest.approx(1 / 3)  # of the draws {1,2} {1,3} {2,3} only the first picks it
    assert bestof.expected(scored, 3) == 0.0


SCORED = st.lists(st.tuples(st.integers(0, 3).map(float), st.integers(0, 4).map(float)), min_size=2, max_size=7)


@given(SCORED, st.data())
def test_best_of_n_is_the_mean_over_all_draws(scored: list[tuple[float, float]], data: st.DataObject) -> None:
    n = data.draw(st.integers(1, len(scored)))
    picked = []
    for drawn in combinations(scored, n):
        best = [worth for score, worth in drawn if score == max(s for s, _ in drawn)]
        picked.append((sum(best) / len(best), drawn))
    found = bestof.expected(scored, n)
    if len({score for score, _ in scored}) == len(scored):
        assert found == pytest.approx(sum(worth for worth, _ in picked) / len(picked))
    assert min(w for _, w in scored) - 1e-9 <= found <= max(w for _, w in scored) + 1e-9


def test_answers_with_one_score_share_their_chances() -> None:
    assert bestof.expected([(1.0, 0.0), (1.0, 1.0), (1.0, 0.5)], 2) == pytest.approx(0.5)


def test_a_scorer_that_measures_what_is_measured_never_falls() -> None:
    dice = random.Random(2)
    worths_of = {f"p{i}": [dice.random() for _ in range(8)] for i in range(20)}
    by_prompt = {prompt: [(worth, worth) for worth in worths] for prompt, worths in worths_of.items()}
    points = bestof.curve(by_prompt, (1, 2, 4, 8, 16), seed=0)
    worths = [point["worth"]["value"] for point in points]
    assert [p["n"] for p in points] == [1, 2, 4, 8] and worths == sorted(worths)
    assert points[0]["kl"] == 0 and points[3]["kl"] == pytest.approx(math.log(8) - 7 / 8)


# -- resamples -------------------------------------------------------------------------------------------------------


def test_draws_are_the_resamples_that_estimates_take() -> None:
    values = [random.Random(i).random() for i in range(12)]
    found = estimate([(v, 1.0) for v in values], mean, seed=4)
    means = sorted(sum(t * v for t, v in zip(times, values, strict=True)) / 12 for times in draws(12, 4))
    assert found is not None and len(means) == RESAMPLES
    assert found.low == pytest.approx(means[round(0.025 * (RESAMPLES - 1))], abs=2e-3)
    assert list(draws(LEAST_CLUSTERS - 1, 4)) == []


# -- trials in clusters ------------------------------------------------------------------------------------------------


def of_clusters(clusters: Iterable[tuple[int, int]]) -> ClusteredShare:
    found = ClusteredShare()
    for n_hits, n in clusters:
        found.add(n_hits, n)
    return found


def test_a_share_of_clusters_is_wilsons_for_as_many_trials_as_vary_so_much() -> None:
    assert ClusteredShare().interval() is None
    assert of_clusters([(n % 3 > 0, 1) for n in range(300)]).interval() == pytest.approx(wilson(200, 300), abs=2e-4)
    alike = of_clusters([(24 * (n % 3 > 0), 24) for n in range(300)])
    assert alike.interval() == pytest.approx(wilson(200, 300), abs=2e-4), "what is said 24 times is said once"
    halves = of_clusters([(12, 24)] * 40)
    assert halves.interval() == wilson(480, 960), "no more trials than there are"
    assert of_clusters([(24, 24)] * 40).interval() == wilson(40, 40)
    assert of_clusters([(7, 9)]).interval() == pytest.approx(wilson(7 / 9, 1))


@pytest.mark.parametrize("rate", [0.5, 0.8])
def test_the_interval_of_clustered_trials_covers_what_it_promises(rate: float) -> None:
    """60 prompts with 4 to 24 judgments each, alike on a prompt; taken as independent, they promise far too much."""
    dice, covered, naive = np.random.default_rng(23), 0, 0
    for _ in range(2000):
        sizes = dice.integers(4, 25, size=60)
        found = of_clusters(zip(dice.binomial(sizes, dice.beta(4 * rate, 4 - 4 * rate, size=60)), sizes, strict=True))
        low, high = found.interval() or (1.0, 0.0)
        covered += low <= rate <= high
        low, high = wilson(found.n_hits, found.n) or (1.0, 0.0)
        naive += low <= rate <= high
    assert covered >= 0.93 * 2000 and naive < 0.8 * 2000
