"""Votes cast in other tools: round trips, and files that are not what they should be."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cai.errors import UserError
from cai.review import Desk
from cai.review.exchange import FORMATS, export, import_votes
from tests import runs
from tests.report_fixture import make_run

CHOICES = ("left", "right", "tie", "both_bad", "cannot_judge")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    folder = make_run(tmp_path / "run", n_train=20, n_held_out=2, rewrite=lambda t: f'=1+1 {t}, "so"\nand <b>more</b>')
    desk = Desk(folder)
    desk.draw(estimate=16, value=8, author="ann")
    return desk


def written(desk: Desk, form: str, tmp_path: Path) -> Path:
    out = tmp_path / ("tasks" if form == "label-studio" else f"tasks.{form}")
    export(desk, form, out, "ann")
    return out / "tasks.json" if form == "label-studio" else out


def label_studio(path: Path, votes: list[str]) -> None:
    """Fill the tasks in as Label Studio exports them: sides as pairwise, the rest as a choice."""
    tasks = json.loads(path.read_text())
    for number, (task, side) in enumerate(zip(tasks, votes, strict=True), 1):
        to_name = "answer1,answer2" if number % 2 else "answer1"
        kind = {"type": "pairwise", "from_name": "better", "to_name": to_name, "value": {"selected": side}}
        if side not in ("left", "right"):
            kind = {"type": "choices", "from_name": "quality", "to_name": "prompt", "value": {"choices": [side]}}
        note = {"type": "textarea", "from_name": "reason", "to_name": "prompt", "value": {"text": ["because"]}}
        task |= {"id": number, "annotations": [{"id": number, "completed_by": {"email": "ann@x.org"}, "lead_time": 3.5,
                 "was_cancelled": False, "updated_at": "2030-01-01T00:00:00Z", "result": [kind, note]}]}  # fmt: skip
    path.write_text(json.dumps(tasks))


def argilla_2(path: Path, votes: list[str]) -> None:
    tree = json.loads(path.read_text())
    for record, side in zip(tree["records"], votes, strict=True):
        order = {"left": ["answer_1", "answer_2"], "right": ["answer_2", "answer_1"]}.get(side)
        name, value = ("better", order) if order else ("quality", side)
        record["responses"] = {name: [{"value": value, "user_id": "ann@x.org", "status": "submitted"}]}
    path.write_text(json.dumps(tree))


def argilla_1(path: Path, votes: list[str]) -> None:
    records = json.loads(path.read_text())["records"]
    for record, side in zip(records, votes, strict=True):
        ranks = {"left": (1, 2), "right": (2, 1), "tie": (1, 1)}.get(side)
        values: dict[str, Any] = {"quality": {"value": side}}
        if ranks:
            values = {"better": {"value": [{"value": f"answer_{i + 1}", "rank": r} for i, r in enumerate(ranks)]}}
        record["responses"] = [{"user_id": "ann@x.org", "status": "submitted", "values": values}]
    path.write_text(json.dumps(records))


def annotated(path: Path, votes: list[str]) -> None:
    tree = json.loads(path.read_text())
    tree["annotators"] = {
        "x": {"name": "ann@x.org", "type": "human"},
        "y": {"description": "kind", "type": "principle"},
    }
    for comparison, side in zip(tree["comparisons"], votes, strict=True):
        pref = {"left": "a", "right": "b"}.get(side)
        comparison["annotations"] = {"x": {"pref": pref, "no_pref_reason": side}, "y": {"pref": "a"}}
    path.write_text(json.dumps(tree))


def csv_rows(path: Path, votes: list[str]) -> None:
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for row, side in zip(rows, votes, strict=True):
        row |= {"vote": {"left": "1", "right": "2"}.get(side, side), "reviewer": "ann@x.org", "confidence": "2"}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def jsonl(path: Path, votes: list[str]) -> None:
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows = [row | {"vote": side, "reviewer": "ann@x.org"} for row, side in zip(rows, votes, strict=True)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


FILLED: list[tuple[str, Callable[[Path, list[str]], None]]] = [
    ("label-studio", label_studio), ("argilla", argilla_2), ("argilla", argilla_1), ("annotated-pairs", annotated),
    ("csv", csv_rows), ("jsonl", jsonl),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMATS)
def test_an_untouched_round_trip_gives_no_vote(desk: Desk, tmp_path: Path, form: str) -> None:
    assert import_votes(desk, form, written(desk, form, tmp_path), "ann") == {"votes": 0, "left_out": []}


@pytest.mark.parametrize(("form", "fill"), FILLED, ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_a_fully_voted_round_trip_gives_the_same_votes_as_voting_here(
    desk: Desk, tmp_path: Path, form: str, fill: Callable[[Path, list[str]], None]
) -> None:
    waiting = [i for i in desk.waiting("ann") if i.queue != "practice"]
    votes = [CHOICES[n % len(CHOICES)] for n in range(len(waiting))]
    path = written(desk, form, tmp_path)
    fill(path, votes)
    found = import_votes(desk, form, path)
    assert found == {"votes": len(waiting), "left_out": []}
    who = desk.book.reviewers[0]
    assert who.endswith("ann@x.org")
    for item, side in zip(waiting, votes, strict=True):
        vote = desk.book.vote(who, item.id)
        assert vote is not None and vote.imported == form
        wanted = side
        if side in ("left", "right"):
            wanted = desk.sides("ann", item, desk.book)[0 if side == "left" else 1]
        # A repeat's sides follow its first vote, which came from elsewhere: what was shown stands in the vote.
        if item.repeats is None:
            assert vote.choice == wanted
        else:
            assert vote.choice in ("a", "b") or vote.choice == side
    again = import_votes(desk, form, path)
    assert again["votes"] == 0 and len(again["left_out"]) == len(waiting)
    assert all("already" in row["why"] for row in again["left_out"])


@pytest.mark.parametrize("form", FORMATS)
def test_nothing_written_tells_the_sides_the_queue_or_the_verdict(desk: Desk, tmp_path: Path, form: str) -> None:
    text = written(desk, form, tmp_path).read_text()
    told = [word for i in desk.book.items.values() for word in (i.comparison_id, i.queue, i.stratum) if len(word) > 5]
    assert not [word for word in told if f'"{word}"' in text]
    for end in (e for p in desk.run.phases for e in desk.run.ended(p)):
        for id_ in (end.comparison.id, end.comparison.a_id, end.comparison.b_id):
            assert id_ not in text
    assert "prediction" not in text.lower() and "suggestion" not in text.lower()


def test_formulas_in_csv_cells_are_defused(desk: Desk, tmp_path: Path) -> None:
    with open(written(desk, "csv", tmp_path), newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert rows and all(row["answer_1"].startswith("'=1+1") for row in rows)


def test_foreign_duplicate_and_cancelled_rows_are_reported_with_their_place(desk: Desk, tmp_path: Path) -> None:
    path = written(desk, "label-studio", tmp_path)
    n = len(json.loads(path.read_text()))
    label_studio(path, ["left"] * n)
    tasks = json.loads(path.read_text())
    tasks[0]["data"]["cai_mapping_token"] = "0123456789ab"
    tasks[1]["annotations"][0]["was_cancelled"] = True
    tasks[2]["annotations"].append(tasks[2]["annotations"][0])
    tasks[3]["data"]["cai_pair_id"] = tasks[4]["data"]["cai_pair_id"]
    tasks[5]["annotations"][0]["result"] = []
    path.write_text(json.dumps(tasks))
    found = import_votes(desk, "label-studio", path)
    whys = {row["row"]: row["why"] for row in found["left_out"]}
    assert whys == {
        "task 1": "its token is not of this run",
        "task 2": "it was cancelled (skipped)",
        "task 3": "'label-studio:ann@x.org' has voted on this item already",
        "task 4": "its token belongs to another item",
        "task 6": "it names no better answer",
    }
    assert found["votes"] == n - 4


def test_drafts_and_rows_without_a_reviewer_are_left_out(desk: Desk, tmp_path: Path) -> None:
    path = written(desk, "argilla", tmp_path)
    n = len(json.loads(path.read_text())["records"])
    argilla_1(path, ["left"] * n)
    records = json.loads(path.read_text())
    records[0]["responses"][0]["status"] = "draft"
    del records[1]["responses"][0]["user_id"]
    path.write_text(json.dumps(records))
    found = import_votes(desk, "argilla", path)
    assert [row["why"] for row in found["left_out"]] == [
        "its response is 'draft', not submitted", "it does not say who voted; give --as NAME",
    ]  # fmt: skip
    assert found["votes"] == n - 2


@given(tree=st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["data", "annotations", "result", "type", "value", "responses", "records", "comparisons",
                         "values", "external_id", "metadata", "token", "vote", "pref", "annotators", "choices"]),
        inner, max_size=4),
    max_leaves=12,
))  # fmt: skip
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_a_file_holds_it_gives_no_vote_and_no_traceback(desk: Desk, tmp_path: Path, tree: Any) -> None:
    for form in ("label-studio", "argilla", "annotated-pairs", "jsonl"):
        path = tmp_path / "odd"
        path.write_text(json.dumps(tree))
        try:
            assert import_votes(desk, form, path, "ann")["votes"] == 0
        except UserError:
            pass


def test_the_commands_write_and_take_in(desk: Desk, tmp_path: Path) -> None:
    out = tmp_path / "votes.jsonl"
    said = runs.cai("review", "export", desk.run.folder, "--format", "jsonl", "-o", out, "--as", "ann").stdout
    assert str(out) in said
    jsonl(out, ["tie"] * len(out.read_text().splitlines()))
    found = json.loads(runs.cai("review", "import", desk.run.folder, out, "--format", "jsonl", "--json").stdout)
    assert found["votes"] == len(out.read_text().splitlines())
    missing = runs.cai("review", "import", desk.run.folder, "nowhere", "--format", "csv", check=2)
    assert "no such file" in missing.stderr
