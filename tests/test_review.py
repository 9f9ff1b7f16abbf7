"""Review: what is drawn, what a reviewer may see, what a vote does, and what can be taken back."""

from __future__ import annotations

import json
import threading
from collections import Counter
from pathlib import Path

import pytest

from cai.audit.views import Views
from cai.errors import UserError
from cai.records import Comparison, Judgment, ReviewItem
from cai.review import Desk
from cai.review.agreement import current_draw, report, reviewed
from cai.review.people import judged
from cai.review.queues import Member, Strata, draw, population, shares
from cai.stages.settle import Asked, settle
from cai.store import ledger, schema
from cai.trail import Ended, RunView
from tests import runs
from tests.report_fixture import make_run

GOLD = [{"prompt": f"Question {i}?", "a": "Good.", "b": "Bad.", "expect": "a", "why": "It is good."} for i in range(6)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("review") / "run", n_train=40, n_held_out=4, phases=("sl", "rl"))


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A fresh run with 30 items to review and gold."""
    folder = make_run(tmp_path / "run", n_train=40, n_held_out=4)
    gold = tmp_path / "gold.jsonl"
    gold.write_text("".join(json.dumps(g) + "\n" for g in GOLD))
    desk = Desk(folder)
    desk.draw(estimate=20, value=10, author="ann", gold=gold)
    return desk


def practise(desk: Desk, reviewer: str) -> int:
    """Vote on the whole practice round; return how many items it had."""
    n = 0
    while (shown := desk.next(reviewer)) and shown.is_practice:
        desk.vote(reviewer, shown.item_id, "left" if shown.left == "Good." else "right")
        n += 1
    return n


def real_item(desk: Desk, reviewer: str) -> ReviewItem:
    """Vote `cannot_judge` until the next item is put for the first time and has a winner by the judge; return it."""
    while shown := desk.next(reviewer):
        item = desk.book.items[shown.item_id]
        repeated = {i.repeats for i in desk.book.items.values()}
        is_first = item.gold is None and item.repeats is None and item.id not in repeated
        if is_first and judged(desk.run, item.comparison_id).label in ("a", "b"):
            return item
        desk.vote(reviewer, shown.item_id, "cannot_judge")
    raise AssertionError("nothing left to review")


def against_the_judge(desk: Desk, reviewer: str, item: ReviewItem) -> str:
    """Return the side that contradicts the judge."""
    wanted = "b" if judged(desk.run, item.comparison_id).label == "a" else "a"
    return "left" if desk.sides(reviewer, item, desk.book)[0] == wanted else "right"


def label_source(desk: Desk, item: ReviewItem) -> str:
    """Return who set the label, as the table of pairs tells it."""
    with Views(desk.run) as views:
        return str(views.query("SELECT label_source FROM pairs WHERE pair_id = ?", (item.comparison_id,)).rows[0][0])


def human(desk: Desk, item: ReviewItem) -> str | None:
    """Return what people say of an item, as the estimates take it."""
    return next(r.human for r in reviewed(desk.run, desk.book, current_draw(desk.book)) if r.item.id == item.id)


def test_the_estimate_queue_is_drawn_with_equal_chances_and_the_value_queue_within_strata(desk: Desk) -> None:
    draw, items = desk.book.draws[0], [i for i in desk.book.items.values() if i.repeats is None]
    assert draw.population == sum(draw.strata.values()) == 80
    estimate = [i for i in items if i.queue == "estimate"]
    assert len(estimate) == 20 and {i.inclusion for i in estimate} == {20 / 80}
    value = [i for i in items if i.queue == "value"]
    assert {i.stratum for i in value} and "plain" not in {i.stratum for i in value}
    for name, n in Counter(i.stratum for i in value).items():
        left = draw.strata[name] - sum(i.stratum == name for i in estimate)
        assert {i.inclusion for i in value if i.stratum == name} == {n / left}
    assert not {i.comparison_id for i in estimate} & {i.comparison_id for i in value}


def planted_end(id_: int, votes: dict[str, tuple[float, float]], flag: str | None = None) -> Ended:
    """Return a comparison on which principles say this in the two orders."""
    due = {name: Asked(name, 1.0, ("ab", "ba")) for name in votes}
    said = [
        Judgment(comparison_id=f"c{id_}", question_id=name, order=order, call_key="k", reply_id="r", p_a=p_a, flag=flag,
                 verdict="tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b")
        for name, both in votes.items() for order, p_a in zip(("ab", "ba"), both, strict=True)
    ]  # fmt: skip
    comparison = Comparison(phase="rl", prompt_id="p", a_id=f"a{id_}", b_id="b", source="samples")
    return Ended(None, 0, comparison, (None, None), tuple(said), settle(comparison.id, said, due), None)  # type: ignore[arg-type]


def test_a_comparison_is_in_the_rarest_stratum_that_fits_it() -> None:
    """All but the last two are in conflict, and ten of them nearly tied: neither may swallow the rest."""
    conflict, close = {"x": (0.95, 0.95), "y": (0.4, 0.4)}, {"x": (0.9, 0.9), "y": (0.15, 0.15)}
    ends = {
        "principle-conflict": [planted_end(n, conflict) for n in range(30)],
        "low-margin": [planted_end(30 + n, close) for n in range(10)],
        "order-inconsistent": [planted_end(40 + n, conflict | {"z": (0.8, 0.3)}) for n in range(4)],
        "flagged": [planted_end(50 + n, conflict, flag="speaks to the judge") for n in range(3)],
        "rare-principle": [planted_end(60, conflict | {"seldom": (0.9, 0.9)})],
        "undecided": [planted_end(70, {"x": (0.9, 0.2)})],
        "plain": [planted_end(80, {"x": (0.9, 0.9)})],
    }
    strata = Strata()
    for end in (end for some in ends.values() for end in some):
        strata.add(end)
    named = dict(strata.named())
    assert {name: {named[e.comparison.id] for e in some} for name, some in ends.items()} == {n: {n} for n in ends}
    members = [Member(id_, name, ()) for id_, name in named.items()]
    value = [d.member.stratum for d in draw(members, 0, 12, seed=1, taken={}) if d.queue == "value"]
    assert set(value) == set(ends) - {"plain"}


def test_the_table_of_pairs_names_the_strata_that_are_drawn_from(desk: Desk) -> None:
    with Views(desk.run) as views:
        told = dict(views.query("SELECT pair_id, stratum FROM pairs").rows)
    assert told == {m.comparison_id: m.stratum for m in population(desk.run)}
    assert {i.stratum for i in desk.book.items.values() if not i.gold} <= set(told.values())


def test_a_second_drawing_extends_the_estimate_queue_without_drawing_anything_twice(desk: Desk) -> None:
    desk.draw(estimate=30, value=0, author="ann")
    estimate = [i.comparison_id for i in desk.book.items.values() if i.queue == "estimate" and i.repeats is None]
    assert len(estimate) == len(set(estimate)) == 50
    with pytest.raises(UserError, match="only 30 comparisons are left"):
        desk.draw(estimate=31, value=0, author="ann")


def test_value_items_are_spread_over_the_strata_as_far_as_each_has_them() -> None:
    assert shares({"x": 2, "y": 100, "z": 0}, 10) == {"x": 2, "y": 8}
    assert shares({"x": 1}, 10) == {"x": 1} and shares({"x": 5, "y": 5}, 3) == {"x": 2, "y": 1}


def test_nothing_shown_before_the_vote_tells_the_arm_the_source_or_the_verdict(desk: Desk) -> None:
    practise(desk, "ann")
    shown = desk.next("ann")
    assert shown is not None
    told = {"item_id", "messages", "left", "right", "question", "principle", "is_practice", "done", "total"}
    assert set(shown.as_dict()) == told
    with pytest.raises(UserError, match="after the vote"):
        desk.reveal("ann", shown.item_id)


def test_sides_differ_between_items_and_reviewers_and_a_reload_keeps_them(desk: Desk) -> None:
    items = [i for i in desk.book.items.values() if i.gold is None and i.repeats is None]
    ann = [desk.sides("ann", i, desk.book) for i in items]
    bob = [desk.sides("bob", i, desk.book) for i in items]
    assert 0 < ann.count("ab") < 30 and ann != bob
    again = Desk(desk.run.folder)
    assert [again.sides("ann", i, again.book) for i in items] == ann


def test_a_repeat_shows_the_other_side_and_comes_after_its_first_time(desk: Desk) -> None:
    practise(desk, "ann")
    first: dict[str, str] = {}
    n_repeats = 0
    while shown := desk.next("ann"):
        item = desk.book.items[shown.item_id]
        if item.repeats:
            assert first[item.repeats] == shown.right
            n_repeats += 1
        first[item.id] = shown.left
        desk.vote("ann", shown.item_id, "tie")
    assert n_repeats == round(0.05 * 30)


def test_practice_comes_first_with_feedback_and_bars_real_votes_until_done(desk: Desk) -> None:
    real = next(i for i in desk.book.items.values() if i.queue == "estimate")
    with pytest.raises(UserError, match="practice"):
        desk.vote("ann", real.id, "left")
    shown = desk.next("ann")
    assert shown is not None and shown.is_practice
    desk.vote("ann", shown.item_id, "left" if shown.left == "Bad." else "right")
    feedback = desk.reveal("ann", shown.item_id)
    assert feedback["agrees"] is False and feedback["why"] == "It is good."
    assert 1 + practise(desk, "ann") == 3
    assert any(i.queue == "gold" for i in desk.book.items.values())


def test_gold_mixed_in_and_repeats_tell_nothing_after_the_vote(desk: Desk) -> None:
    practise(desk, "ann")
    told = set()
    while shown := desk.next("ann"):
        item = desk.book.items[shown.item_id]
        desk.vote("ann", shown.item_id, "tie")
        if item.gold or item.repeats:
            told.add(str(desk.reveal("ann", shown.item_id)))
    assert told == {"{'withheld': True}"}


def test_how_reliable_a_reviewer_is_shows_in_gold_and_repeats(desk: Desk) -> None:
    n = practise(desk, "ann")
    while shown := desk.next("ann"):
        is_gold = desk.book.items[shown.item_id].gold is not None
        desk.vote("ann", shown.item_id, "right" if is_gold and shown.left == "Good." else "left")
    found = report(desk.run)
    told = {row["round"]: (row["n"], row["right"]) for row in found["gold"]}
    assert told == {"practice": (n, n), "gold": (sum(i.queue == "gold" for i in desk.book.items.values()), 0)}
    (repeats,) = found["repeats"]
    assert (repeats["n"], repeats["agreed"]) == (2, 0), "always left, and the sides were swapped"


def test_a_vote_against_the_judge_becomes_an_override_and_undo_takes_it_back(desk: Desk) -> None:
    practise(desk, "ann")
    item = real_item(desk, "ann")
    desk.vote("ann", item.id, against_the_judge(desk, "ann", item), reason="clearer")
    held = desk.book.override(item.comparison_id)
    assert held is not None and held.blind and (held.author, held.reason) == ("ann", "clearer")
    end = next(e for p in desk.run.phases for e in desk.run.ended(p) if e.comparison.id == item.comparison_id)
    assert end.settled.state == "overridden" and end.settled.label == held.label
    assert desk.reveal("ann", item.id)["label_source"] == "human"
    undone = desk.undo("ann")
    assert undone is not None and undone.item_id == item.id
    assert desk.book.override(item.comparison_id) is None
    end = next(e for p in desk.run.phases for e in desk.run.ended(p) if e.comparison.id == item.comparison_id)
    assert end.settled.label_source == "judge"
    desk.vote("ann", item.id, against_the_judge(desk, "ann", item))
    held = desk.book.override(item.comparison_id)
    assert held is not None and not held.blind, "the verdict had been shown before this vote"


def test_a_vote_that_agrees_with_the_judge_changes_nothing(desk: Desk) -> None:
    practise(desk, "ann")
    item = real_item(desk, "ann")
    other = {"left": "right", "right": "left"}[against_the_judge(desk, "ann", item)]
    desk.vote("ann", item.id, other)
    assert desk.book.override(item.comparison_id) is None


def test_reviewers_do_not_see_each_other_and_a_dispute_is_decided_outright(desk: Desk) -> None:
    for reviewer in ("ann", "bob"):
        practise(desk, reviewer)
    item = real_item(desk, "ann")
    desk.vote("ann", item.id, against_the_judge(desk, "ann", item))
    assert desk.progress("bob")["done"] == 0
    desk.vote("bob", item.id, {"left": "right", "right": "left"}[against_the_judge(desk, "bob", item)])
    assert desk.book.override(item.comparison_id) is None, "people disagree, so the judge's label stands"
    assert [d["comparison_id"] for d in desk.disputes()] == [item.comparison_id]
    (told,) = json.loads(runs.cai("review", "disputes", desk.run.folder, "--json").stdout)
    assert told["asked"] == desk.texts(item)[0][-1].content and set(told["votes"]) == {"ann", "bob"}
    assert label_source(desk, item) == "judge"
    desk.override(item.comparison_id, "tie", author="cat", reason="both right in part")
    assert desk.disputes() == []
    held = desk.book.override(item.comparison_id)
    assert held is not None and set(held.settles) == {v.id for v in desk.book.opinions(item.comparison_id).values()}
    assert label_source(desk, item) == desk.reveal("ann", item.id)["label_source"] == "adjudicated"
    assert human(desk, item) is None, "whoever saw the verdict measures nothing"
    desk.override(item.comparison_id, "tie", author="cat", reason="both right in part", blind=True)
    assert human(desk, item) == "tie"
    desk.withdraw(item.comparison_id, author="cat", reason="said twice")
    desk.undo("bob")
    held = desk.book.override(item.comparison_id)
    assert held is not None and held.author == "cat", "votes do not change what was decided outright"
    desk.withdraw(item.comparison_id, author="cat", reason="mistake")
    held = desk.book.override(item.comparison_id)
    assert held is not None and held.author == "ann", "the votes hold again"
    assert label_source(desk, item) == "human"
    desk.override(item.comparison_id, "tie", author="cat", reason="both right in part")
    assert label_source(desk, item) == "human", "nobody contradicts anybody, so nothing was settled"


def test_a_skipped_item_comes_back_at_the_end(desk: Desk) -> None:
    practise(desk, "ann")
    first = desk.next("ann")
    assert first is not None
    desk.vote("ann", first.item_id, "skip")
    seen = []
    while (shown := desk.next("ann")) and shown.item_id != first.item_id:
        seen.append(shown.item_id)
        desk.vote("ann", shown.item_id, "cannot_judge")
    assert shown is not None and len(seen) == desk.progress("ann")["total"] - 1
    desk.vote("ann", first.item_id, "tie")
    assert desk.next("ann") is None and desk.progress("ann")["left"] == 0


@pytest.mark.parametrize(
    ("reviewer", "side", "confidence", "message"),
    [("", "left", None, "name"), ("a\x1b", "left", None, "name"), ("ann", "c", None, "expected one of"),
     ("ann", "left", 9, "expected 1")],
)  # fmt: skip
def test_bad_votes_are_refused_and_leave_nothing(
    desk: Desk, reviewer: str, side: str, confidence: int | None, message: str
) -> None:
    before = ledger.head(desk.run.connection)
    item = next(iter(desk.book.items))
    with pytest.raises(UserError, match=message):
        desk.vote(reviewer, item, side, confidence=confidence)
    assert ledger.head(desk.run.connection) == before


def test_a_second_vote_on_an_item_is_refused(desk: Desk) -> None:
    shown = desk.next("ann")
    assert shown is not None
    desk.vote("ann", shown.item_id, "left")
    with pytest.raises(UserError, match="undo that vote first"):
        desk.vote("ann", shown.item_id, "right")


def test_by_principle_asks_about_one_principle_and_overrides_nothing(tmp_path: Path) -> None:
    desk = Desk(make_run(tmp_path / "run", n_train=20, n_held_out=2))
    desk.draw(estimate=12, value=0, author="ann", by_principle=True)
    items = list(desk.book.items.values())
    assert {i.principle_id for i in items} <= {"brief", "no-opener", "to-the-point"}
    n_lettered = 0
    while shown := desk.next("ann"):
        assert shown.principle is not None
        assert ("A or B" in shown.question) == shown.question.endswith("(A is the first answer, B the second.)")
        n_lettered += "A or B" in shown.question
        desk.vote("ann", shown.item_id, "left")
    assert n_lettered and not desk.book.overrides


def test_votes_are_kept_beside_a_writing_owner_and_the_chain_holds(desk: Desk) -> None:
    from cai.store.store import Store

    store = Store(desk.run.folder / "store.sqlite")
    practise(desk, "ann")

    def own() -> None:
        for i in range(400):
            judgment = Judgment(
                comparison_id=f"c{i}", question_id="q", order="ab", call_key=None, reply_id=None, verdict="a", p_a=1.0
            )
            store.put_decisions([judgment])
            if i % 20 == 0:
                store.flush()
        store.flush()

    owner = threading.Thread(target=own)
    owner.start()
    n = 0
    while shown := desk.next("ann"):
        desk.vote("ann", shown.item_id, "tie")
        n += 1
    owner.join()
    store.close()
    reader = schema.connect(desk.run.folder / "store.sqlite", readonly=True)
    assert list(ledger.verify(reader)) == []
    assert sum(v.choice == "tie" for v in Desk(desk.run.folder).book.votes) == n > 30


def test_what_settle_gives_without_reviews_is_unchanged(finished: Path) -> None:
    run = RunView(finished)
    before = run.accounting("rl").as_dict()
    Desk(finished).draw(estimate=5, value=5, author="ann")
    assert run.accounting("rl").as_dict() == before


def test_gold_that_cannot_be_read_is_told_with_its_line(finished: Path, tmp_path: Path) -> None:
    path = tmp_path / "gold.jsonl"
    path.write_text(json.dumps(GOLD[0]) + '\n{"prompt": "x"}\n')
    with pytest.raises(UserError, match="gold.jsonl:2"):
        Desk(finished).draw(estimate=1, value=0, author="ann", gold=path)


def test_a_small_run_is_drawn_whole_where_nobody_says_how_many(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", n_train=6, n_held_out=2)
    found = json.loads(runs.cai("review", "sample", folder, "--json").stdout)
    assert found["drawn"]["estimate"] == found["population"] < 140 and found["drawn"]["value"] == 0
    for words in (("sample", folder, "--value", "-1"), ("similar", folder, "--threshold", "7")):
        assert "expected" in runs.cai("review", *words, check=2).stderr
