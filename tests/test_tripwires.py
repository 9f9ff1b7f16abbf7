"""Every tripwire with looks that trip it and looks that must not."""

from __future__ import annotations

from typing import Any

import pytest

from cai.config import WatchSection
from cai.train.tripwires import best, kl_ceiling, tripped

WATCH = WatchSection()
CALM: dict[str, Any] = {
    "step": 0,
    "reward": 0.0,
    "judge": 0.2,
    "checks": 0.5,
    "kl": 0.0,
    "entropy": 3.0,
    "length": 40.0,
    "refusal": 0.05,
    "boilerplate": 0.1,
    "repetition": 0.02,
}


def looks(*changes: dict[str, Any]) -> list[dict[str, Any]]:
    """A calm first look, then one for every change, twenty steps apart."""
    return [CALM, *({**CALM, "step": 20 * i, **change} for i, change in enumerate(changes, 1))]


def test_an_untrained_or_improving_policy_trips_nothing() -> None:
    assert tripped([], WATCH) is None and tripped([CALM], WATCH) is None
    better = {"reward": 2.0, "judge": 0.5, "checks": 0.9, "kl": 20.0, "length": 60.0, "entropy": 1.5}
    assert tripped(looks(better, better, better), WATCH) is None


@pytest.mark.parametrize(
    ("wire", "found", "harmless"),
    [
        ("kl_ceiling", {"kl": 60.1}, {"kl": 59.9}),
        ("entropy_collapse", {"entropy": 0.29}, {"entropy": 0.31}),
        ("length_drift", {"length": 81.0}, {"length": 79.0}),
        ("length_drift", {"length": 19.0}, {"length": 21.0}),
        ("refusal_rise", {"refusal": 0.26}, {"refusal": 0.24}),
        ("boilerplate_rise", {"boilerplate": 0.41}, {"boilerplate": 0.39}),
        ("repetition_rise", {"repetition": 0.18}, {"repetition": 0.16}),
        ("not_finite", {"reward": float("nan")}, {"reward": -5.0}),
        ("not_finite", {"kl": float("inf")}, {"kl": 1.0}),
    ],
)
def test_a_wire_trips_beyond_its_limit_and_not_before(wire: str, found: Any, harmless: Any) -> None:
    trip = tripped(looks(found), WATCH)
    assert trip is not None and trip.wire == wire and trip.step == 20 and trip.sentence
    assert tripped(looks(harmless), WATCH) is None
    assert tripped(looks(found, {}), WATCH) is None, "only the last look counts"


@pytest.mark.parametrize(
    "name",
    [
        "kl_ceiling",
        "entropy_share",
        "length_ratio",
        "refusal_rise",
        "boilerplate_rise",
        "repetition_rise",
        "judge_fall",
    ],
)
def test_a_wire_set_to_null_is_not_watched(name: str) -> None:
    off = WatchSection.model_validate({name: None})
    mad = {
        "reward": 9.0,
        "judge": -1.0,
        "kl": 99.0,
        "entropy": 0.0,
        "length": 900.0,
        "refusal": 1.0,
        "boilerplate": 1.0,
        "repetition": 1.0,
    }
    only = {
        "kl_ceiling": ("kl",),
        "entropy_share": ("entropy",),
        "length_ratio": ("length",),
        "refusal_rise": ("refusal",),
        "boilerplate_rise": ("boilerplate",),
        "repetition_rise": ("repetition",),
        "judge_fall": ("judge", "reward"),
    }[name]
    change = {key: mad[key] for key in only}
    assert tripped(looks(change, change), WATCH) is not None
    assert tripped(looks(change, change), off) is None


def test_the_judge_falling_while_the_reward_rises_is_gaming() -> None:
    good, gamed = {"reward": 1.0, "judge": 0.5}, {"reward": 2.0, "judge": 0.3}
    trip = tripped(looks(good, gamed, gamed), WATCH)
    assert trip is not None and trip.wire == "gaming" and trip.step == 60
    assert "from 0.50 (step 20) to 0.30" in trip.sentence and "from 1.00 to 2.00" in trip.sentence
    assert tripped(looks(good, gamed), WATCH) is None, "one look may be chance"
    assert tripped(looks(good, gamed, {**gamed, "judge": 0.45}), WATCH) is None, "it has recovered"
    worse = {"reward": 0.5, "judge": 0.3}
    assert tripped(looks(good, worse, worse), WATCH) is None, "reward and judge fall together: nothing is gamed"


def test_without_a_judge_the_checks_are_believed() -> None:
    good, gamed = {"judge": None, "checks": 0.9, "reward": 1.0}, {"judge": None, "checks": 0.4, "reward": 3.0}
    first = {**CALM, "judge": None}
    trip = tripped([first, *looks(good, gamed, gamed)[1:]], WATCH)
    assert trip is not None and trip.wire == "gaming"
    nobody = {"judge": None, "checks": None, "reward": 9.0}
    assert tripped([{**CALM, **nobody}, *looks(nobody, nobody)[1:]], WATCH) is None


def test_the_best_look_is_the_judges_and_never_the_rewards() -> None:
    told = looks({"judge": 0.6, "reward": 1.0}, {"judge": 0.4, "reward": 9.0}, {"judge": 0.6, "reward": 2.0})
    assert best(told) == 20, "of equals the earliest"
    assert best([{**CALM, "judge": None, "checks": None}]) is None
    babble = looks({"judge": 0.6}, {"judge": 0.9, "entropy": 0.01})
    assert best(babble) == 40 and best(babble, tripped(babble, WATCH)) == 20
    assert best([{**CALM, "judge": None}, {**CALM, "judge": None, "checks": 0.9, "step": 40}]) == 40


def test_the_ceiling_is_watched_at_every_step() -> None:
    trip = kl_ceiling(61.0, 7, WATCH)
    assert trip is not None and trip.step == 7 and kl_ceiling(60.0, 7, WATCH) is None
