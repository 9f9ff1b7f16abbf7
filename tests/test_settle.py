"""settle: its properties, and every state a comparison can end in."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.records import STATES, Decision, Judgment, Override, Withdrawal
from cai.stages.settle import Asked, Settled, settle

DUE = {"q1": Asked("one", 1.0, ("ab", "ba")), "q2": Asked("two", 3.0, ("ab", "ba"))}
probability = st.floats(0, 1)


def judged(question: str, order: str, p_a: float | None, *, verdict: str | None = None) -> Judgment:
    if verdict is None:
        assert p_a is not None
        verdict = "tie" if abs(p_a - 0.5) <= 0.01 else "a" if p_a > 0.5 else "b"
    return Judgment(
        comparison_id="c",
        question_id=question,
        order=order,
        call_key="k",
        reply_id="r",
        verdict=verdict,
        p_a=p_a,
        reason=None if p_a is not None else "no_probabilities",
    )


def both(question: str, p_ab: float, p_ba: float) -> list[Decision]:
    return [judged(question, "ab", p_ab), judged(question, "ba", p_ba)]


def override(label: str, **changes: object) -> Override:
    fields = {"comparison_id": "c", "label": label, "author": "ann", "reason": "r", "blind": True, "time": "t"}
    return Override(**(fields | changes))


def swapped(decisions: list[Decision]) -> list[Decision]:
    """The same decisions with the names of the arms exchanged."""
    other = {"a": "b", "b": "a"}
    return [
        d.model_copy(update={"verdict": other.get(d.verdict, d.verdict), "p_a": None if d.p_a is None else 1 - d.p_a})
        if isinstance(d, Judgment)
        else d.model_copy(update={"label": other.get(d.label, d.label)})
        for d in decisions
    ]


decisions_strategy = st.tuples(probability, probability, probability, probability).map(
    lambda p: both("q1", p[0], p[1]) + both("q2", p[2], p[3])
)


@given(decisions_strategy, st.randoms(use_true_random=False))
def test_order_of_judgments_does_not_matter(decisions: list[Decision], random: object) -> None:
    shuffled = list(decisions)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert settle("c", shuffled, DUE) == settle("c", decisions, DUE)


@given(decisions_strategy)
def test_exchanging_the_arms_exchanges_the_label(decisions: list[Decision]) -> None:
    one, two = settle("c", decisions, DUE), settle("c", swapped(decisions), DUE)
    assert one.state == two.state
    assert one.confidence == pytest.approx(two.confidence)
    if one.p_a is not None and two.p_a is not None and one.state == "kept":
        assert one.p_a == pytest.approx(1 - two.p_a)
        assert {one.label, two.label} == {"a", "b"}


@given(decisions_strategy, st.sampled_from(["abstain", "average"]))
def test_everything_stays_in_range(decisions: list[Decision], rule: str) -> None:
    ended = settle("c", decisions, DUE, on_disagreement=rule)  # type: ignore[arg-type]
    assert ended.state in STATES
    assert 0 <= ended.confidence <= 1 and 0 <= ended.p_tie <= 1
    assert ended.p_a is None or 0 <= ended.p_a <= 1
    assert (ended.label is None) == (ended.p_a is None)


@given(decisions_strategy, st.sampled_from(["a", "b", "tie"]))
def test_the_latest_override_holds(decisions: list[Decision], label: str) -> None:
    other = {"a": "b", "b": "tie", "tie": "a"}[label]
    ended = settle("c", [*decisions, override(other), override(label, supersedes="x")], DUE)
    assert (ended.state, ended.label, ended.label_source) == ("overridden", label, "human")
    ended = settle("c", [*decisions, override(other), override(label, settles=("v", "w"))], DUE)
    assert (ended.label, ended.label_source) == (label, "adjudicated")


@given(decisions_strategy)
def test_judgments_of_another_constitution_are_passed_over(decisions: list[Decision]) -> None:
    assert settle("c", [*decisions, *both("q-old", 1.0, 1.0)], DUE) == settle("c", decisions, DUE)


def test_the_label_is_the_weighted_mean() -> None:
    ended = settle("c", both("q1", 0.9, 0.7) + both("q2", 0.6, 0.6), DUE)
    assert ended.p_a == pytest.approx((1 * 0.8 + 3 * 0.6) / 4)
    assert ended.confidence == pytest.approx(2 * 0.65 - 1)
    assert (ended.state, ended.label) == ("kept", "a")


def test_a_principle_that_contradicts_itself_abstains_and_costs_confidence() -> None:
    ended = settle("c", both("q1", 0.9, 0.9) + both("q2", 0.9, 0.1), DUE)
    assert [v.stand for v in ended.votes] == ["votes", "abstains"]
    assert ended.p_a == pytest.approx(0.9)
    assert ended.confidence == pytest.approx(0.8 * 1 / 4)


def test_average_lets_it_vote() -> None:
    ended = settle("c", both("q1", 0.9, 0.9) + both("q2", 0.9, 0.2), DUE, on_disagreement="average")
    assert ended.p_a == pytest.approx((0.9 + 3 * 0.55) / 4)


def end(*decisions: Decision) -> Settled:
    return settle("c", list(decisions), DUE)


def test_a_judge_that_always_picks_the_first_is_an_abstention() -> None:
    assert end(*both("q1", 1.0, 0.0), *both("q2", 0.97, 0.03)).state == "abstained"


def test_an_unreadable_reply_is_never_a_vote() -> None:
    ended = end(*both("q1", 0.9, 0.9), judged("q2", "ab", 0.0), judged("q2", "ba", None, verdict="invalid"))
    assert [v.stand for v in ended.votes] == ["votes", "invalid"]
    assert ended.p_a == pytest.approx(0.9)


def test_states_in_order_of_precedence() -> None:
    refused = [judged("q1", o, None, verdict="refused") for o in ("ab", "ba")]
    invalid = [judged("q2", o, None, verdict="invalid") for o in ("ab", "ba")]
    assert end(*refused).state == "failed"  # q2 was never decided
    assert end(*refused, *invalid).state == "refused"
    assert end(*both("q1", 1.0, 0.0), *invalid).state == "invalid"
    assert end(*both("q1", 1.0, 0.0), *both("q2", 1.0, 0.0)).state == "abstained"
    assert end(*both("q1", 0.5, 0.5), *both("q2", 0.5, 0.5)).state == "tied"
    assert end(*both("q1", 0.8, 0.8), *both("q2", 0.5, 0.5)).state == "kept"
    assert end(*both("q1", 0.8, 0.8), override("b")).state == "failed"


def test_ties_are_counted_by_weight() -> None:
    ended = end(*both("q1", 0.8, 0.8), *both("q2", 0.5, 0.5))
    assert ended.p_tie == pytest.approx(3 / 4)


def test_nothing_due_is_a_failure() -> None:
    assert settle("c", [], {}).state == "failed"


def test_a_withdrawn_override_no_longer_holds_and_the_one_before_it_does() -> None:
    decisions = [*both("q1", 0.9, 0.9), *both("q2", 0.9, 0.9), override("tie"), override("b", reason="second")]
    back = Withdrawal(comparison_id="c", withdraws=decisions[-1].id, author="ann", time="t")
    assert settle("c", decisions, DUE).label == "b"
    assert settle("c", [*decisions, back], DUE).label == "tie"
    both_back = [back, Withdrawal(comparison_id="c", withdraws=decisions[-2].id, author="ann", time="t")]
    assert settle("c", [*decisions, *both_back], DUE).label_source == "judge"
