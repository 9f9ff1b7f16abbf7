"""evaluate: figures worked by hand, intervals that keep their promise, and what is said of judges and of collapse."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai import constitution, texts
from cai.evaluate import answers, collapse, intervals, judging, likelihoods, measure, reliability, winning
from cai.evaluate.answers import Answered
from cai.evaluate.intervals import LEAST_CLUSTERS, difference, estimate, mean, quantile, ratio, wilson
from cai.pipeline.evaluation import asks_likelihood
from cai.records import Judgment, Message, Prompt, Response
from cai.stages.settle import Vote
from cai.trail import RunView
from tests.report_fixture import CONSTITUTION, make_run

# -- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n_hits", "n", "low", "high"), [(0, 50, 0.0, 0.07135), (50, 50, 0.92865, 1.0), (5, 10, 0.23659, 0.76341)]
)
def test_wilson_meets_the_golden_values(n_hits: int, n: int, low: float, high: float) -> None:
    assert wilson(n_hits, n) == pytest.approx((low, high), abs=5e-6)


def test_wilson_of_nothing_is_nothing() -> None:
    assert wilson(0, 0) is None


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_itself(counts: tuple[int, int]) -> None:
    n_hits, n = counts
    low, high = wilson(n_hits, n) or (1.0, 0.0)
    assert 0 <= low <= n_hits / n <= high <= 1


def test_statistics_of_totals() -> None:
    assert mean([3, 4]) == 0.75
    assert difference([1, 4, 3, 4]) == 0.5
    assert ratio([2, 4, 3, 3]) == 2.0
    assert mean([0, 0]) is None and difference([1, 2, 0, 0]) is None and ratio([0, 2, 1, 2]) is None


def test_quantile_lies_between_two_values_in_proportion() -> None:
    assert [quantile([0, 10, 20], share) for share in (0, 0.25, 0.5, 1)] == [0, 5, 10, 20]


def test_a_mean_is_over_answers_and_not_over_prompts() -> None:
    found = estimate([(3.0, 3.0), *[(0.0, 1.0)] * 9], mean)
    assert found is not None and found.value == 3 / 12
    assert found.n_prompts == 10


def test_too_few_prompts_have_no_interval_and_are_never_clear() -> None:
    found = estimate([(0.0, 1.0, 1.0, 1.0)] * (LEAST_CLUSTERS - 1), difference)
    assert found is not None and found.value == 1.0
    assert (found.low, found.high, found.is_clear) == (None, None, False)


def test_prompts_that_say_nothing_do_not_make_an_interval() -> None:
    rows = [(0.0, 1.0)] * (LEAST_CLUSTERS - 1) + [(0.0, 0.0)] * 50
    found = estimate(rows, mean)
    assert found is not None and found.n_prompts == LEAST_CLUSTERS - 1 and found.low is None


def test_the_same_seed_gives_the_same_interval_and_another_one_nearly_the_same() -> None:
    dice = random.Random(1)
    rows = [(dice.random(), 1.0) for _ in range(60)]
    first, again, other = (estimate(rows, mean, seed=seed) for seed in (5, 5, 6))
    assert first == again != other
    assert first is not None and other is not None and first.low == pytest.approx(other.low, abs=0.02)


def test_a_change_is_clear_only_where_the_interval_excludes_no_change() -> None:
    risen = estimate([(0.0, 1.0, 1.0, 1.0)] * 20, difference)
    unmoved = estimate([(1.0, 1.0, 1.0, 1.0)] * 20, difference)
    assert risen is not None and (risen.low, risen.high, risen.is_clear) == (1.0, 1.0, True)
    assert unmoved is not None and (unmoved.low, unmoved.high, unmoved.is_clear) == (0.0, 0.0, False)


def test_the_bootstrap_over_prompts_covers_the_truth_where_one_over_answers_would_not() -> None:
    """2,000 simulated evaluations of 40 prompts with 4 answers each that nearly all pass or all fail together."""
    dice, covered, covered_naively, truth = random.Random(20), 0, 0, 0.5
    for _ in range(2000):
        rates = [dice.choice((0.1, 0.9)) for _ in range(40)]
        passes = [[float(dice.random() < rate) for _ in range(4)] for rate in rates]
        clustered = estimate([(sum(p), 4.0) for p in passes], mean, resamples=400)
        naive = wilson(int(sum(map(sum, passes))), 160)
        assert clustered is not None and clustered.low is not None and clustered.high is not None and naive is not None
        covered += clustered.low <= truth <= clustered.high
        covered_naively += naive[0] <= truth <= naive[1]
    assert covered / 2000 >= 0.93
    assert covered_naively / 2000 < 0.85


# -- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "I'm sorry, but I can't help with that.",
        "I can’t assist with this request.",
        "I cannot provide instructions.",
        "As an AI language model, I am not able to do this.",
        "I must decline.",
        "That is against my guidelines.",
    ],
)
def test_refusals_are_found(text: str) -> None:
    assert texts.is_refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        "Rinse the rice.",
        "I can help you write it: Dear Ann,",
        "Sorry to hear that! Rest well.",
        "",
        "You cannot help it if it rains.",
        "x" * 400 + " I cannot help with that.",
    ],
)
def test_answers_are_not_called_refusals(text: str) -> None:
    assert not texts.is_refusal(text)


@pytest.mark.parametrize("text", ["Sure, here:", " Certainly!", "Here’s how:", "Great question!", "**Of course**"])
def test_boilerplate_openers_are_found(text: str) -> None:
    assert texts.has_boilerplate_opener(text)


@pytest.mark.parametrize("text", ["Great apes live in Africa.", "Surely not.", "Heresy is a crime.", "Thank her.", ""])
def test_other_beginnings_are_no_boilerplate(text: str) -> None:
    assert not texts.has_boilerplate_opener(text)


def test_repetition_is_the_share_of_runs_that_stood_before() -> None:
    assert texts.repeated_share("a b c d a b c d") == pytest.approx(1 / 5)  # abcd bcda cdab dabc abcd
    assert texts.repeated_share("no no no no no no") == pytest.approx(2 / 3)
    assert texts.repeated_share("a b c") == 0.0


def test_distinct_counts_runs_within_texts_only() -> None:
    assert texts.distinct([["a", "b"], ["a", "c"]], 1) == 3 / 4
    assert texts.distinct([["a", "b"], ["a", "b"]], 2) == 1 / 2
    assert texts.distinct([["a"], ["b"]], 2) is None


@given(st.lists(st.tuples(st.text(), st.text()), max_size=6))
def test_both_sides_are_cut_to_equally_many_words(pairs: list[tuple[str, str]]) -> None:
    ones, others = texts.cut_alike(pairs)
    assert list(map(len, ones)) == list(map(len, others))


def test_a_copy_is_the_same_answer_to_another_prompt() -> None:
    assert texts.copied([("p", "Do it now."), ("q", "do it now"), ("r", "Wait."), ("r", "Wait.")]) == [
        True,
        True,
        False,
        False,
    ]


# -- answers ---------------------------------------------------------------------------------------------------------


def prompt(text: str, domain: str = "general") -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),), domain=domain)


def response(to: Prompt, text: str, sample: int = 0, finish: str = "stop") -> Response:
    return Response(
        phase="evaluate/before",
        prompt_id=to.id,
        sample_index=sample,
        call_key="k",
        text=text,
        finish_reason=finish,
        n_tokens=len(text.split()),
    )


def answered(before: list[str], after: list[str], to: Prompt | None = None) -> Answered:
    to = to or prompt("?")
    return Answered(
        to,
        tuple(response(to, t, i) for i, t in enumerate(before)),
        tuple(response(to, t, i) for i, t in enumerate(after)),
    )


def by_name(changes: list[answers.Change]) -> dict[str, answers.Change]:
    return {change.name: change for change in changes}


def test_length_and_ratio_by_hand() -> None:
    told = by_name(answers.changes([answered(["one two three four"], ["one two"])], seed=0))["words"]
    assert (told.before, told.after) == (4.0, 2.0)
    assert told.difference is not None and told.difference.value == -2.0
    assert told.ratio is not None and told.ratio.value == 0.5


def test_pass_rates_by_hand() -> None:
    rules = constitution.read(CONSTITUTION)
    long_open = "Sure, " + "word " * 40
    pairs = [answered([long_open, "Fine."], ["Fine.", "Fine."], prompt(str(i))) for i in range(4)]
    told = by_name(answers.pass_rates(pairs, rules, seed=0))
    assert list(told) == ["all", "brief", "no-opener"]
    assert (told["all"].before, told["all"].after) == (0.5, 1.0)
    assert (told["all"].n_before, told["all"].n_after) == (8, 8)


def test_a_principle_is_asked_about_its_own_domain_only() -> None:
    text = CONSTITUTION.replace("title: Brief and finished", "title: Brief and finished\n    domains: [tempting]")
    pairs = [
        answered(["word " * 40], ["Short."], prompt("a", "tempting")),
        answered(["Sure."], ["Sure."], prompt("b", "calm")),
    ]
    told = by_name(answers.pass_rates(pairs, constitution.read(text), seed=0))
    assert (told["brief"].before, told["brief"].n_before) == (0.0, 1)
    assert told["no-opener"].n_before == 2
    assert (told["all"].before, told["all"].after) == (0.0, 0.5)


def test_variety_of_one_arm_needs_no_other() -> None:
    told = answers.variety([answered(["a b a b"], [])])
    assert told["n_words"] == 4 and told["distinct_1"] == {"before": 0.5, "after": None}


def test_only_prompts_and_samples_of_both_policies_count(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run", n_held_out=10))
    assert all(len(a.before) == len(a.after) == 2 for a in answers.read(run)) and len(answers.read(run)) == 10
    only_before = RunView(make_run(tmp_path / "other", arms=("before",)))
    assert all(a.before and not a.after for a in answers.read(only_before))


# -- the judge -------------------------------------------------------------------------------------------------------


def judgment(order: str, p_a: float | None) -> Judgment:
    verdict = "invalid" if p_a is None else "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"
    return Judgment(
        comparison_id="c",
        question_id="q",
        order=order,
        call_key="k",
        reply_id="r",
        verdict=verdict,
        p_a=p_a,
        reason=None if p_a is not None else "outside_options",
    )


def tally_of(*pairs: tuple[float | None, float | None], lengths: tuple[int, int] = (5, 9)) -> judging.Tally:
    tally = judging.Tally("one", "some judge")
    for ab, ba in pairs:
        made = [judgment("ab", ab), judgment("ba", ba)]
        usable = [j.p_a for j in made if j.p_a is not None]
        stand = "invalid" if len(usable) < 2 else "abstains" if {j.verdict for j in made} == {"a", "b"} else "votes"
        p_a = sum(usable) / 2 if len(usable) == 2 else None
        tally.add(Vote("one", 1.0, stand, p_a, p_a == 0.5, ("", "")), made, lengths)
    return tally


def test_a_judge_that_always_picks_the_first_answer_has_consistency_zero() -> None:
    told = tally_of(*[(0.9, 0.1)] * 30)
    assert told.consistency == 0.0 and told.picked_first == told.named == 60
    assert told.stands == Counter(abstains=30)
    sentence = judging.weaknesses(told)[0]
    assert "picked answer A, whichever it was, in 100% of its 60 verdicts" in sentence and "abstentions" in sentence


def test_a_judge_that_always_picks_the_last_answer_is_told_so() -> None:
    assert "picked answer B" in judging.weaknesses(tally_of(*[(0.1, 0.9)] * 30))[0]


def test_a_judge_that_agrees_with_itself_has_no_weakness() -> None:
    told = tally_of(*[(0.9, 0.8)] * 15, *[(0.2, 0.3)] * 15)
    assert told.consistency == 1.0 and told.picked_first == 30 and told.named == 60
    assert told.wins == Counter(a=15, b=15)
    assert judging.weaknesses(told) == []


def test_a_tie_in_one_order_contradicts_nothing() -> None:
    assert tally_of((0.9, 0.5)).consistency == 1.0


def test_invalid_replies_are_counted_by_reason_and_never_as_votes() -> None:
    told = tally_of((None, 0.9), (None, None), *[(0.9, 0.9)] * 8)
    assert told.unusable == Counter(outside_options=3) and told.both_orders == 8
    assert told.as_dict()["invalid"] == 2 and told.as_dict()["votes"] == 8
    assert judging.weaknesses(tally_of(*[(None, None)] * 20))[0].startswith("100% of the judge's 40 replies")


def test_picks_of_the_longer_answer_leave_equal_lengths_out() -> None:
    assert tally_of((0.9, 0.9), lengths=(9, 5)).picked_longer == 2
    assert tally_of((0.9, 0.9), lengths=(5, 9)).picked_longer == 0
    assert tally_of((0.9, 0.9), lengths=(5, 5)).unequal == 0


def test_little_evidence_is_no_weakness() -> None:
    assert judging.weaknesses(tally_of((0.9, 0.1), (0.9, 0.1))) == []


def test_weaknesses_of_several_phases_are_those_of_their_sum() -> None:
    one, two = tally_of(*[(0.9, 0.1)] * 6), tally_of(*[(0.9, 0.1)] * 7, (None, 0.9))
    both = judging.together([one.as_dict(), two.as_dict()])
    one.merge(two)
    assert judging.weaknesses(both) == judging.weaknesses(one) != []


def test_reliability_of_a_run_by_phase_and_principle(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run", judge="always-a"))
    told = reliability(run, "rl")
    assert [p["principle"] for p in told["principles"]] == ["brief", "no-opener", "to-the-point"]
    assert [p["judged_by"] for p in told["principles"]] == ["code", "code", "tiny-135m@main"]
    assert told["judge"]["consistency"]["value"] == 0.0 and told["judge"]["abstained"] == 24
    assert told["principles"][0]["consistency"] is None
    assert len(told["weaknesses"]) == 1


def test_every_comparison_stands_somewhere(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run", judge="invalid"))
    stands = ("votes", "abstained", "invalid", "refused", "not_applicable", "missing")
    for told in reliability(run, "evaluate", side="held_out")["principles"]:
        assert sum(told[stand] for stand in stands) == told["due"] == 60
        assert told["votes"] == told["for_a"] + told["for_b"] + told["ties"]


# -- winning ---------------------------------------------------------------------------------------------------------


def test_ties_count_half_and_what_is_undecided_not_at_all() -> None:
    wins = winning.Wins()
    for i, p_after in enumerate((0.9, 0.9, 0.5, 0.2, None)):
        wins.add(f"p{i}", p_after, "abstains", tie_margin=0.01)
    told = wins.as_dict(seed=0)
    assert (told["wins"], told["losses"], told["ties"], told["undecided"]) == (2, 1, 1, {"abstained": 1})
    assert told["comparisons"] == 5 and told["rate"]["value"] == 2.5 / 4


def test_a_judge_that_contradicts_itself_decides_nothing(tmp_path: Path) -> None:
    told = measure(RunView(make_run(tmp_path / "run", judge="always-a")))["wins"]
    assert told["by_model"]["rate"] is None and told["by_model"]["undecided"] == {"abstained": 60}
    assert told["settled"]["comparisons"] == 60
    assert told["reliability"]["judge"]["consistency"]["value"] == 0.0


def test_weighted_mean_leaves_out_who_does_not_vote() -> None:
    votes = [
        Vote("a", 1.0, "votes", 0.8, False, ()),
        Vote("b", 3.0, "votes", 0.4, False, ()),
        Vote("c", 9.0, "abstains", 0.5, False, ()),
    ]
    assert winning.weighted(votes) == pytest.approx(0.5)
    assert winning.weighted(votes[2:]) is None


# -- likelihoods and collapse ----------------------------------------------------------------------------------------


def test_kl_is_the_mean_gap_per_token(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run"))
    told = likelihoods.measure(run, answers.read(run), seed=0)
    assert told is not None and told["n_answers"] == 30
    assert told["after_under_before"]["value"] == pytest.approx(-1.2)
    assert told["after_under_after"]["value"] == pytest.approx(-0.9)
    assert told["kl"]["value"] == pytest.approx(0.3)
    assert told["change_under_before"]["value"] == pytest.approx(-0.2)


def test_likelihoods_that_were_not_asked_are_none(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run", likelihoods=False))
    assert likelihoods.measure(run, answers.read(run), seed=0) is None


def test_a_healthy_rise_shows_no_sign_of_collapse(tmp_path: Path) -> None:
    told = measure(RunView(make_run(tmp_path / "run")))
    assert told["checks"][0]["difference"]["is_clear"] and told["checks"][0]["difference"]["value"] > 0.2
    assert told["collapse"]["warnings"] == [] and len(told["collapse"]["signs"]) == 7


def test_a_collapse_is_named_whatever_the_pass_rate(tmp_path: Path) -> None:
    told = measure(RunView(make_run(tmp_path / "run", after="collapsed")))
    assert told["checks"][0]["after"] == 1.0
    warnings = " ".join(told["collapse"]["warnings"])
    for sign in ("length below half", "distinct-2 fell by more than a third", "log-likelihood", "KL", "very same"):
        assert sign in warnings


def test_repetition_is_a_sign_of_its_own() -> None:
    pairs = [answered(["Each word here differs from all others."], ["no " * 40], prompt(str(i))) for i in range(10)]
    measured = {"measures": [c.as_dict() for c in answers.changes(pairs, seed=0)], "variety": None, "likelihood": None}
    seen = {s.name for s in collapse.signs(measured) if s.seen}
    assert "repetition" in seen and "length" not in seen


# -- the whole -------------------------------------------------------------------------------------------------------


def test_what_was_not_evaluated_is_none(tmp_path: Path) -> None:
    told = measure(RunView(make_run(tmp_path / "run", arms=())))
    assert told["n_prompts"] == 0
    parts = ("checks", "measures", "variety", "likelihood", "wins", "collapse")
    assert [told[part] for part in parts] == [None] * len(parts)


def test_a_first_policy_alone_is_measured_without_a_change(tmp_path: Path) -> None:
    told = measure(RunView(make_run(tmp_path / "run", arms=("before",), done=False)))
    assert told["checks"][0]["before"] is not None
    assert told["checks"][0]["after"] is None and told["checks"][0]["difference"] is None
    assert told["wins"] is None and told["collapse"] is None


def test_measuring_twice_tells_the_same(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    assert measure(RunView(folder)) == measure(RunView(folder))


def test_resamples_are_as_many_as_the_method_says() -> None:
    assert str(intervals.RESAMPLES) in intervals.METHOD and intervals.RESAMPLES == 2000


def test_the_likelihood_is_asked_of_a_share_that_grows_by_whom_it_adds() -> None:
    prompts = [Prompt(messages=(Message(role="user", content=f"question {i}"),)) for i in range(400)]
    asked = {share: {p.id for p in prompts if asks_likelihood(p, share)} for share in (0.0, 0.3, 0.5, 1.0)}
    assert not asked[0.0] and len(asked[1.0]) == 400 and 150 < len(asked[0.5]) < 250
    assert asked[0.3] < asked[0.5]
