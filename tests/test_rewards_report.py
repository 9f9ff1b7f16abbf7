"""A reward model's quality, worked by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cai.errors import UserError
from cai.evaluate.rewards import Scored, quality, read, reliability
from cai.report.reliability import drawn


def pair(chosen: float, rejected: float, p: float = 1.0, n_tokens: tuple[int, int] = (5, 5)) -> Scored:
    return Scored(p, chosen, rejected, n_tokens)


def test_accuracy_and_auc_by_hand() -> None:
    # gaps +2, -1 and 0; the label of the last pair prefers the other answer
    found = quality([pair(3, 1), pair(0, 1), pair(2, 2), pair(0, 4, p=0.2)], [pair(1, 0)] * 4)
    assert found.accuracy == pytest.approx((1 + 0 + 0.5 + 1) / 4) and found.n == 4
    # preferred 3, 0, 2, 4 against rejected 1, 1, 2, 0: wins 4 + 0 + 3 + 4, and half for 0 = 0 and for 2 = 2
    assert found.auc == pytest.approx((4 + 0.5 + 3.5 + 4) / 16)
    assert found.train_accuracy == 1 and found.gap == pytest.approx(1 - 2.5 / 4)


def test_ties_say_nothing_about_accuracy() -> None:
    assert quality([pair(3, 1), pair(0, 1, p=0.5)]).n == 1
    nothing = quality([pair(0, 1, p=0.5)])
    assert nothing.accuracy is None and nothing.auc is None and nothing.ece is None and nothing.interval is None


def test_calibration_by_hand() -> None:
    # Four pairs at sigmoid(ln 3) = 0.75, of which three are right: said 0.75, was 0.75. A's side alternates.
    gap = math.log(3)
    right, wrong = pair(gap, 0), pair(0, gap, p=0.0)
    assert [b.said for b in reliability([right, right])] == pytest.approx([0.25, 0.75])
    found = quality([pair(gap, 0), pair(gap, 0), pair(gap, 0, p=0.0), pair(gap, 0)])
    bins = {b.low: b for b in found.bins}
    assert bins[0.7].n == 2 and bins[0.7].was == 0.5 and bins[0.2].was == 0.0
    assert found.ece == pytest.approx((2 * 0.25 + 2 * 0.25) / 4)
    assert found.log_loss == pytest.approx((3 * -math.log(0.75) + -math.log(0.25)) / 4)
    assert wrong.gap == gap


def test_length_correlation_by_hand() -> None:
    rows = [pair(1, 0, n_tokens=(9, 5)), pair(2, 0, n_tokens=(13, 5)), pair(0, 1, n_tokens=(1, 5))]
    found = quality(rows)
    assert found.length_correlation == pytest.approx(1.0) and found.longer_wins == 1
    assert found.longer_is_chosen == pytest.approx(2 / 3)


def test_the_figure_has_a_dot_for_every_bin_and_says_it_in_words() -> None:
    found = quality([pair(1, 0), pair(3, 0), pair(0, 2)])
    svg = drawn(found)
    assert svg.count("<circle") == len(found.bins) and "Reliability: said" in svg


def test_without_scores_the_report_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="train with held_out set"):
        read(tmp_path / "held_out.jsonl")
