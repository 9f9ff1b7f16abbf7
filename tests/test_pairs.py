"""What becomes a training row, and what is kept out of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai import canon, pairs
from cai.config import PairsSection
from cai.pairs import sft_rows
from cai.records import Comparison, Critique, Message, Prompt, Response, Revision
from cai.stages.admit import Accounting, Arms, Gate, total
from cai.stages.settle import Settled
from cai.store import schema
from cai.store.store import Store
from cai.trail import Ended, RunView
from tests import runs

PROMPT = Prompt(messages=(Message(role="user", content="Say something."),))
COMPARISON = Comparison(phase="walk", prompt_id=PROMPT.id, a_id="a", b_id="b", source="samples")


def settled(label: str | None = "a", state: str = "kept", p_a: float | None = 0.9, confidence: float = 0.8) -> Settled:
    return Settled("c", state, label, p_a, 0.0, confidence, (), "judge", None)  # type: ignore[arg-type]


def arms(a: str = "The better one.", b: str = "The worse one.", **cut: bool) -> Arms:
    return Arms(a, b, cut.get("cut_a", False), cut.get("cut_b", False))


@pytest.mark.parametrize(
    ("rules", "ended", "texts", "reason"),
    [
        ({}, settled(), arms("same", "same "), "identical"),
        ({}, settled(), arms("", "x"), "empty"),
        ({}, settled(), arms(cut_a=True), "cut"),
        ({}, settled("b", p_a=0.1), arms(cut_b=True), "cut"),
        ({"min_confidence": 0.9}, settled(), arms(), "low_confidence"),
        ({"max_words": 2}, settled(), arms(), "too_long"),
        ({"boilerplate": ("(?i)BETTER",)}, settled(), arms(), "boilerplate"),
    ],
)
def test_every_filter_says_its_name(rules: dict, ended: Settled, texts: Arms, reason: str) -> None:
    admission = Gate(PairsSection(**rules)).admit(ended, COMPARISON, PROMPT, texts)
    assert (admission.state, admission.reason, admission.pair) == ("filtered", reason, None)


def test_a_cut_loser_is_no_reason_to_drop_the_row() -> None:
    assert Gate(PairsSection()).admit(settled(), COMPARISON, PROMPT, arms(cut_b=True)).pair is not None


def test_the_second_of_two_equal_rows_is_a_duplicate() -> None:
    gate = Gate(PairsSection())
    assert gate.admit(settled(), COMPARISON, PROMPT, arms()).state == "kept"
    assert gate.admit(settled(), COMPARISON, PROMPT, arms()).reason == "duplicate"


def test_ties_are_dropped_or_kept_as_asked() -> None:
    tie = settled("tie", "tied", 0.5, 0.0)
    assert Gate(PairsSection()).admit(tie, COMPARISON, PROMPT, arms()).pair is None
    kept = Gate(PairsSection(ties="keep")).admit(tie, COMPARISON, PROMPT, arms())
    assert kept.state == "tied" and kept.pair is not None and kept.pair.p_chosen == 0.5


def test_the_chosen_answer_is_the_winning_arm() -> None:
    pair = Gate(PairsSection()).admit(settled("b", p_a=0.2), COMPARISON, PROMPT, arms()).pair
    assert pair is not None and pair.chosen == "The worse one." and pair.p_chosen == pytest.approx(0.8)


@pytest.mark.parametrize("state", ["failed", "refused", "invalid", "abstained"])
def test_what_was_not_decided_is_no_row(state: str) -> None:
    admission = Gate(PairsSection()).admit(settled(None, state, None, 0.0), COMPARISON, PROMPT, arms())
    assert (admission.state, admission.pair) == (state, None)


def test_accounting_that_does_not_add_up_is_an_error() -> None:
    counted = Accounting()
    counted.count(Gate(PairsSection()).admit(settled(), COMPARISON, PROMPT, arms()))
    assert total([counted, counted]).as_dict()["kept"] == 2
    counted.comparisons += 1
    with pytest.raises(AssertionError, match="does not add up"):
        counted.as_dict()


def test_sft_rows_are_clean_revisions(tmp_path: Path) -> None:
    """A revision that answers the request instead of the user never becomes a row."""
    runs.write_inputs(tmp_path, n_prompts=1)
    tree = runs.config(tmp_path, phases=[{"name": "sl", "revisions": 1}])
    run = RunView(runs.run_json(runs.write_config(tmp_path, tree))["run"])
    (_, prompt), *_ = run.prompts("train")
    texts = {
        "clean": "A short and plain new answer.",
        "echo of the critique": "It has 83 words; at most 30 are allowed.",
        "echo of the request": "Write the answer again in at most thirty words.",
        "echo of the question": f"{prompt.messages[-1].content} Well.",
        "boilerplate": "As an AI I have no thing.",
    }
    connection = schema.connect(run.folder / "store.sqlite")
    connection.execute("DELETE FROM records WHERE phase = 'sl'")
    connection.close()
    store = Store(run.folder / "store.sqlite")
    for i, text in enumerate(texts.values()):
        response = Response(
            phase="sl",
            prompt_id=prompt.id,
            sample_index=i,
            call_key="k",
            text="long " * 83,
            finish_reason="stop",
            n_tokens=83,
        )
        critique = Critique(
            answer_id=response.id,
            principle_id="brief",
            round=1,
            text_id="t",
            call_key=None,
            text="It has 83 words; at most 30 are allowed.",
            passed=False,
        )
        revision = Revision(
            critique_id=critique.id,
            answer_id=response.id,
            text_id="t",
            call_key="k",
            text=text,
            finish_reason="stop",
            n_tokens=9,
        )
        for record in (response, critique, revision):
            store.put_record(record, prompt_id=prompt.id, phase="sl")
    store.close()
    assert [row["completion"] for row in sft_rows(RunView(run.folder), "sl")] == [texts["clean"]]
    assert json.dumps(list(sft_rows(RunView(run.folder), "sl"))) == json.dumps(list(sft_rows(run, "sl")))


@pytest.mark.parametrize("method", ["dpo", "reward"])
def test_rows_of_a_training_come_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    """A phase's comparisons, each with all its decisions, are never held together."""
    runs.write_inputs(tmp_path, n_prompts=8)
    run = RunView(runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path)))["run"])
    taken, ended = [], run.ended

    def counted(phase: str) -> Iterator[Ended]:
        for end in ended(phase):
            taken.append(end)
            yield end

    monkeypatch.setattr(run, "ended", counted)
    rows = pairs.phase_rows(run, "walk", method)
    next(rows)
    assert len(taken) < 10
    n_rows = 1 + sum(1 for _ in rows)
    assert n_rows > 5 and len(taken) > 20
    path = tmp_path / "rows.jsonl"
    assert pairs.write_jsonl(path, pairs.phase_rows(run, "walk", method)) == n_rows
    assert canon.id_of_files(path) == pairs.rows_id(pairs.phase_rows(run, "walk", method))
    assert canon.id_of_files(path) == canon.id_of_bytes(path.read_bytes())
