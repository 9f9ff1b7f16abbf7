"""Agreement: the planted judge is measured as planted, the gate stops, and the report hides nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai import canon
from cai.audit.questions import QUESTIONS
from cai.audit.views import Views
from cai.config import GateSection
from cai.errors import Stopped
from cai.records import Override
from cai.review import Desk, agreement, estimate, gate
from cai.review.people import judged
from cai.review.similar import similar
from cai.review.words import told
from cai.store import schema
from cai.trail import RunView
from tests import runs
from tests.report_fixture import make_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 120 comparisons, of which 60 and 20 are drawn."""
    folder = make_run(tmp_path_factory.mktemp("agreement") / "run", n_train=60, n_held_out=2)
    Desk(folder).draw(estimate=60, value=20, author="ann")
    return folder


def truth(run: RunView, comparison_id: str) -> str | None:
    """The planted right answer: the judge's label, but for one pair in ten the other one."""
    label = judged(run, comparison_id).label
    wrong = canon.unit_interval("planted", comparison_id) < 0.1
    return {"a": "b", "b": "a"}.get(label or "", label) if wrong else label


def review_all(desk: Desk, reviewer: str, *, slips: float = 0.0) -> None:
    """Vote on everything as the planted truth says, with a share of slips."""
    while shown := desk.next(reviewer):
        item = desk.book.items[shown.item_id]
        label = truth(desk.run, item.comparison_id)
        if canon.unit_interval("slip", reviewer, item.id) < slips:
            label = {"a": "b", "b": "a"}.get(label or "", label)
        left = desk.sides(reviewer, item, desk.book)[0]
        side = "cannot_judge" if label is None else "tie" if label == "tie" else "left" if label == left else "right"
        desk.vote(reviewer, shown.item_id, side)


@pytest.fixture(scope="module")
def reviewed(folder: Path) -> Desk:
    desk = Desk(folder)
    review_all(desk, "ann")
    review_all(desk, "bob", slips=0.1)
    return desk


def test_the_judge_is_measured_against_the_planted_truth_by_one_reviewer_who_is_always_right(folder: Path) -> None:
    desk = Desk(folder)
    review_all(desk, "ann")
    report = agreement.report(desk.run)
    items = [i for i in desk.book.items.values() if i.queue == "estimate" and not i.repeats]
    right = [i for i in items if (label := judged(desk.run, i.comparison_id).label)
             and label == truth(desk.run, i.comparison_id)]  # fmt: skip
    decided = [i for i in items if judged(desk.run, i.comparison_id).label]
    assert report["accuracy"]["n"] == len(decided) and report["accuracy"]["value"] == len(right) / len(decided)
    assert report["judge_and_people"]["agreed"] == len(right)
    assert report["repeats"][0]["agreed"] == report["repeats"][0]["n"] == 4
    assert report["rate"]["powered"] is None and "100" in report["rate"]["why_not"]
    assert report["overrides"] == sum(
        truth(desk.run, c) != judged(desk.run, c).label
        for c in {i.comparison_id for i in desk.book.items.values() if not i.gold}
        if truth(desk.run, c)
    )


def test_with_enough_labels_the_judge_of_all_others_powers_the_estimate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate, "PPI_LEAST_N", 20)
    monkeypatch.setattr(estimate, "PPI_LEAST_DISAGREEMENTS", 2)
    desk = Desk(make_run(tmp_path / "run", n_train=60, n_held_out=2, phases=("sl",), arms=("before",)))
    desk.draw(estimate=26, value=6, author="ann", repeats=0.0)
    review_all(desk, "ann")
    rate = agreement.report(desk.run)["rate"]
    value = {"a": 0.0, "tie": 0.5, "b": 1.0}
    judge = {id_: value[label] for id_, label in agreement.judge_labels(desk.run, "revision") if label}
    ours = [i.comparison_id for i in desk.book.items.values() if i.queue == "estimate" and i.comparison_id in judge]
    people = [value[truth(desk.run, id_)] for id_ in ours]
    middle, low, high = estimate.powered(people, [judge.pop(id_) for id_ in ours], list(judge.values()))
    assert rate["why_not"] is None and rate["people"]["n"] == len(ours)
    assert rate["powered"] == {"value": pytest.approx(middle), "low": pytest.approx(low), "high": pytest.approx(high),
                               "n": len(ours), "n_judged": len(judge)}  # fmt: skip
    assert any("prediction-powered" in line for line in told(agreement.report(desk.run)))


def test_two_reviewers_are_compared_on_what_both_voted_on(reviewed: Desk) -> None:
    people = agreement.report(reviewed.run)["people"]
    assert people["reviewers"] == ["ann", "bob"] and people["n"] > 60
    assert 0.8 < people["observed"]["value"] < 1.0
    for name in ("kappa", "ac1", "alpha", "fleiss"):
        assert people[name]["low"] < people[name]["value"] < people[name]["high"]
    (pair,) = people["pairs"]
    assert pair["reviewers"] == ["ann", "bob"] and pair["n"] == people["n"] == sum(s["n"] for s in people["by_stratum"])
    assert sum(sum(row.values()) for row in pair["confusion"].values()) == pair["n"]
    assert sum(pair["confusion"][label][label] for label in pair["confusion"]) == pair["agreed"]
    assert pair["kappa"]["value"] == people["kappa"]["value"] and pair["accuracy"]["low"] < pair["accuracy"]["high"]
    assert pair["agreed"] == round(sum(s["alike"]["value"] * s["n"] for s in people["by_stratum"]))


def test_an_override_decided_outright_is_not_taken_for_a_measurement(reviewed: Desk) -> None:
    before = agreement.report(reviewed.run)
    free = next(e for e in reviewed.run.ended("rl") if e.comparison.id not in {
        i.comparison_id for i in reviewed.book.items.values()})  # fmt: skip
    reviewed.override(free.comparison.id, "tie", author="cat", reason="outright")
    after = agreement.report(reviewed.run)
    assert after["accuracy"] == before["accuracy"] and after["overrides"] == before["overrides"] + 1
    reviewed.withdraw(free.comparison.id, author="cat", reason="for the other tests")


def test_votes_cast_after_the_verdict_was_shown_do_not_count(tmp_path: Path) -> None:
    desk = Desk(make_run(tmp_path / "run", n_train=20, n_held_out=2))
    desk.draw(estimate=10, value=0, author="ann")
    shown = desk.next("ann")
    assert shown is not None
    desk.vote("ann", shown.item_id, "left")
    told_ = desk.reveal("ann", shown.item_id)
    while told_.get("withheld"):
        shown = desk.next("ann")
        assert shown is not None
        desk.vote("ann", shown.item_id, "left")
        told_ = desk.reveal("ann", shown.item_id)
    desk.undo("ann")
    n = agreement.report(desk.run)["accuracy"]
    desk.vote("ann", shown.item_id, "right")
    report = agreement.report(desk.run)
    assert report["accuracy"] == n and report["votes"]["not_blind"] == 1


def test_the_report_is_readable_and_has_a_json_twin(reviewed: Desk) -> None:
    lines = "\n".join(told(agreement.report(reviewed.run)))
    assert "judge's accuracy, estimate queue" in lines and "people among themselves" in lines
    assert "ann says a: bob a" in lines and "all alike" in lines
    said = json.loads(runs.cai("review", "agreement", reviewed.run.folder, "--json").stdout)
    assert said == json.loads(json.dumps(agreement.report(reviewed.run)))


def test_nothing_drawn_is_told(tmp_path: Path) -> None:
    run = RunView(make_run(tmp_path / "run", n_train=6, n_held_out=2))
    report = agreement.report(run)
    assert report["accuracy"] is report["weighted"] is report["people"] is None
    assert any("cai review sample" in line for line in told(report))


def test_the_gate_stops_without_votes_and_below_its_bound_and_opens_above(reviewed: Desk, tmp_path: Path) -> None:
    fresh = RunView(make_run(tmp_path / "run", n_train=6, n_held_out=2))
    gate.check(fresh, None)
    with pytest.raises(Stopped, match="nobody has reviewed"):
        gate.check(fresh, GateSection(min_agreement_lower=0.5))
    low = agreement.headline(reviewed.run)
    assert low is not None
    gate.check(reviewed.run, GateSection(min_agreement_lower=round(low.low - 0.01, 4)))
    with pytest.raises(Stopped, match="wanted at least 99.0%"):
        gate.check(reviewed.run, GateSection(min_agreement_lower=0.99))


def test_the_gate_holds_nothing_back_before_the_judge_has_decided_anything(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", n_train=4, n_held_out=0, phases=("sl",), arms=())
    writer = schema.connect(folder / "store.sqlite")
    writer.execute("DELETE FROM ledger WHERE tag = 'judgment'")
    writer.close()
    gate.check(RunView(folder), GateSection(min_agreement_lower=0.99))


def test_a_run_with_a_gate_stops_before_training_and_says_how_to_go_on(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=6)
    phases = [{"name": "walk", "samples": 2, "pairs": ["samples"], "train": "dpo"}]
    tree = runs.config(tmp_path, phases=phases, review={"gate": {"min_agreement_lower": 0.8}})
    said = runs.cai("run", runs.write_config(tmp_path, tree), "--quiet", check=3).stderr
    assert "review.gate stops training" in said and "cai review sample" in said
    assert not (Path(tree["run"]["dir"]) / "checkpoints" / "walk").exists()


def test_near_duplicates_of_an_overridden_pair_are_found_and_proposed_once(tmp_path: Path) -> None:
    texts = ["How do I water a cactus in winter?", "How do I water a cactus in the winter?", "Why is the sky blue?"]
    desk = Desk(make_run(tmp_path / "run", n_train=3, n_held_out=0, prompts=texts, rewrite=lambda t: t[:30]))
    assert similar(desk.run, desk.book) == []
    ends = {e.prompt.messages[0].content: e for e in desk.run.ended("rl")}
    first = ends[texts[0]].comparison.id
    desk.override(first, "tie", author="ann", reason="both the same")
    found = similar(desk.run, desk.book, threshold=0.05)
    assert found and {f.like for f in found} == {first} and first not in {f.comparison_id for f in found}
    assert found == sorted(found, key=lambda f: -f.overlap)
    proposed = desk.propose([f.comparison_id for f in found], "ann")
    assert {i.queue for i in proposed} == {"proposed"} and similar(desk.run, desk.book, threshold=0.05) == []
    assert desk.propose([f.comparison_id for f in found], "ann") == []
    assert agreement.current_draw(desk.book) is None, "what was proposed speaks for no population"


def test_overrides_change_the_pairs_and_the_command_names_the_stale_checkpoint(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", n_train=12, n_held_out=2)
    pair = next(e for e in RunView(folder).ended("rl") if e.admission.pair is not None)
    said = runs.cai("review", "override", folder, pair.comparison.id[:16], "--label",
                    {"a": "b", "b": "a"}[pair.settled.label], "--reason", "unsafe", "--as", "ann")  # fmt: skip
    assert "stale:" in said.stdout and "rl" in said.stdout
    held = Desk(folder).book.override(pair.comparison.id)
    assert isinstance(held, Override) and (held.author, held.reason, held.blind) == ("ann", "unsafe", False)
    again = runs.cai("review", "override", folder, pair.comparison.id, "--reason", "no, it was right", "--as", "ann")
    assert "taken back" in again.stdout and Desk(folder).book.override(pair.comparison.id) is None


def test_calibration_by_sql_is_the_brier_score_of_scikit_learn(reviewed: Desk) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    views = Views(reviewed.run)
    bins = list(views.query(QUESTIONS["calibration"].sql).dicts())
    rows = views.query(
        "SELECT max(p.judge_p_a, 1 - p.judge_p_a), (p.judge_p_a >= 0.5) = (r.label = 'a') FROM reviews r "
        "JOIN pairs p USING (pair_id) WHERE r.holds AND r.blind AND r.label IN ('a', 'b') AND r.queue = 'estimate' "
        "AND r.repeats IS NULL AND p.judge_p_a IS NOT NULL"
    ).rows
    assert sum(b["n"] for b in bins) == len(rows) > 50
    brier = metrics.brier_score_loss([hit for _, hit in rows], [p for p, _ in rows])
    assert bins[0]["brier"] == pytest.approx(brier)
    assert bins[0]["ece"] == pytest.approx(sum(b["n"] * abs(b["said"] - b["right"]) for b in bins) / len(rows))
