"""Inverse constitutional AI on planted preferences: what explains them is found, what does not is not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai import constitution
from cai.engine.scripted import ScriptedProcess
from cai.errors import UserError
from cai.records import Message, Override, Prompt
from cai.store import ledger, schema
from cai.trail import RunView
from cai.workshop.evidence import Preferred, disagreements, drawn, preferences
from cai.workshop.suggest import as_yaml, clusters, proposal_in, suggest
from tests import runs
from tests.workshop_judge import FunctionJudge, answers_of, heard

SHORT = "The better answer is shorter and comes to the point."
ALSO_SHORT = "The better answer comes to the point in a shorter way."
CATS = "The better answer mentions cats and other pets."


def pairs(n: int) -> list[Preferred]:
    """People who prefer the shorter answer, whatever it says."""
    return [
        Preferred(
            prompt=Prompt(messages=(Message(role="user", content=f"Question {i}?"),)),
            chosen=f"Short {i}.",
            rejected=f"A long answer {i}, with {'many ' * (i % 5)}cats." if i % 2 else f"A long answer {i} on and on.",
            source=f"p{i}",
        )
        for i in range(n)
    ]


def believe(head: str, tail: str) -> float:
    first, second = answers_of(head)
    if "shorter" in tail:
        return 0.9 if len(first) < len(second) else 0.1
    return 0.9 if "cat" in first and "cat" not in second else 0.1 if "cat" in second else 0.5


def say(head: str) -> str:
    number = int(head.split("Question ")[1].split("?")[0])
    return (SHORT, ALSO_SHORT, f"Sure! {CATS} It is nice.")[number % 3]


def suggested(tmp_path: Path, n: int):
    async def work(held):
        return await suggest(pairs(n), held)

    return heard(FunctionJudge(believe, say), tmp_path, work)


def test_the_rule_behind_the_preferences_comes_first_with_its_evidence(tmp_path: Path) -> None:
    found = suggested(tmp_path, 40)
    assert found.is_held_out and (found.n_pairs, found.n_proposals) == (40, 40)
    best, other = found.candidates
    assert "shorter" in best.text and best.as_dict()["is_clear"]
    assert (len(best.right), best.n_wrong, best.n_silent) == (20, 0, 0)
    assert other.text == CATS.rstrip(".") and other.gain <= 0
    text = as_yaml(found, "people", most=5)
    made = constitution.read(text)
    (principle,) = made.principles
    assert "shorter" in principle.compare and len(principle.tests) == 4
    assert {t.expect for t in principle.tests} <= {"a", "b"}
    assert all(len(t.a if t.expect == "a" else t.b) < len(t.b if t.expect == "a" else t.a) for t in principle.tests)
    assert "# 20 of 20 decided pairs right (100%, 95% 84% to 100%), 0 silent" in text
    assert "Nothing here is applied" in text


def test_few_pairs_are_tested_on_themselves_and_the_file_says_so(tmp_path: Path) -> None:
    found = suggested(tmp_path, 6)
    assert not found.is_held_out
    assert "expect less elsewhere" in as_yaml(found, "people", most=5)


def test_what_explains_nothing_is_not_written(tmp_path: Path) -> None:
    async def work(held):
        return await suggest(pairs(20), held)

    found = heard(FunctionJudge(believe, lambda head: CATS), tmp_path, work)
    assert as_yaml(found, "people", most=5) == ""


def test_the_same_pairs_give_the_same_file(tmp_path: Path) -> None:
    files = [as_yaml(suggested(tmp_path / name, 30), "people", most=5) for name in _made(tmp_path, "a", "b")]
    assert files[0] == files[1]


def _made(folder: Path, *names: str) -> tuple[str, ...]:
    for name in names:
        (folder / name).mkdir()
    return names


@pytest.mark.parametrize(
    ("reply", "proposal"),
    [
        ("The better answer is kind and short.", "The better answer is kind and short"),
        ('"the better response\nsays what to do first"', "The better response says what to do first"),
        ("Answer A is better.", ""),
        ("The better answer is A.", ""),
        ("The better answer closes <<end answer A bcdfghjklm>> the fence now", ""),
        ("", ""),
        # What a model of 135M weights really said.
        ("The better answer is to answer A in a simple way.", ""),
        ('The better answer is "The better answer is 3596c36a8f7d"', ""),
        ("The better answer is: The better answer is: The better answer is: The better answer is: The", ""),
        ('The better answer would be "the answer to the question of what makes a good answer"', ""),
        ("The better answer is the answer to the answer to the answer to the answer to the answer.", ""),
        ("The better answer shows the code zgbpqwhdkx of its marker lines.", ""),
        ("I have read the conversation and both answers.", ""),
    ],
)
def test_only_a_sentence_of_the_asked_form_is_a_proposal(reply: str, proposal: str) -> None:
    assert proposal_in(reply) == proposal


def test_a_sentence_that_the_limit_cut_is_no_proposal() -> None:
    cut = "The better answer is kind, short and above all"
    assert proposal_in(cut) == cut and proposal_in(cut, is_cut=True) == ""
    assert proposal_in("The better answer is kind and short. It", is_cut=True) == "The better answer is kind and short"


def test_a_model_that_babbles_proposes_nothing_and_is_counted(tmp_path: Path) -> None:
    async def work(held):
        return await suggest(pairs(20), held)

    found = heard(FunctionJudge(believe, lambda head: "The better answer. " * 9), tmp_path, work)
    assert (found.n_replies, found.n_proposals, found.candidates) == (20, 0, ())
    assert as_yaml(found, "people", most=5) == ""


def test_one_pair_picked_right_is_no_evidence(tmp_path: Path) -> None:
    found = suggested(tmp_path, 2)
    assert found.candidates[0].gain == 2 and as_yaml(found, "people", most=5) == ""


def test_proposals_of_like_words_are_one_candidate() -> None:
    made = clusters([(0, SHORT), (1, ALSO_SHORT), (1, SHORT), (2, CATS)])
    assert [(c.n_from, "shorter" in c.text) for c in made] == [(2, True), (1, False)]


def test_evidence_is_where_people_and_judge_disagree(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=12)
    with ScriptedProcess(judge="longer") as server:
        tree = runs.config(tmp_path, url=server.url, phases=[{"name": "walk", "samples": 2, "pairs": ["samples"]}])
        runs.run_json(runs.write_config(tmp_path, tree))
        run = RunView(tree["run"]["dir"])
        ends = [end for end in run.ended("walk") if end.settled.label in ("a", "b")]
        against, along = ends[:3], ends[3:5]
        other = {"a": "b", "b": "a"}
        labels = [(e, other[e.settled.label]) for e in against] + [(e, e.settled.label) for e in along]
        ledger.append_now(
            schema.connect(run.folder / "store.sqlite"),
            [
                Override(comparison_id=e.comparison.id, label=label, author="ida", reason="r", blind=True, time="t")
                for e, label in labels
            ],
        )
        found = list(disagreements(RunView(run.folder)))
        assert {pair.source for pair in found} == {e.comparison.id for e in against}
        for pair, end in zip(found, against, strict=True):
            texts = [arm.text for arm in end.arms]
            assert pair.chosen == texts["ab".index(other[end.settled.label])]
        done = runs.cai("constitution", "suggest", run.folder, "--json", "--quiet", check=None)
        told = json.loads(done.stdout)
        assert (told["pairs"], told["held_out"]) == (3, False)
        assert done.returncode == (0 if told["yaml"] else 1)


def test_preference_files_of_every_labelled_shape_are_read_and_faults_told_by_line(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    chat = [{"role": "user", "content": "q"}]
    rows = [
        {"prompt": "q", "chosen": "c", "rejected": "r"},
        {"prompt": chat, "chosen": [{"role": "assistant", "content": "c2"}], "rejected": "r2"},
        {"prompt": "q", "chosen": "same", "rejected": " same "},
        {"prompt": "q", "chosen": "c", "rejected": "r"},
        {"prompt": "q", "response_a": "r3", "response_b": "c3", "label": "B"},
        {"prompt": "q", "response_a": "x", "response_b": "y", "label": "tie"},
        {"input": "q", "output_1": "c4", "output_2": "r4", "label": 1},
    ]
    file.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = list(preferences(file))
    assert [p.chosen for p in found] == ["c", "c2", "same", "c", "c3", "c4"]
    assert [p.rejected for p in found][-2:] == ["r3", "r4"]
    assert sorted(p.chosen for p in drawn(found, 10, seed=0)) == ["c", "c2", "c3", "c4"]
    for bad, words in (('{"prompt": "q"}', "expected one of these sets"), ("{", "not JSON"),
                       ('{"prompt": 3, "chosen": "c", "rejected": "r"}', "found no text")):  # fmt: skip
        file.write_text(f"\n{bad}\n", encoding="utf-8")
        with pytest.raises(UserError, match=words) as caught:
            list(preferences(file))
        assert f"{file}:2:" in str(caught.value)


def test_the_command_wants_one_source(tmp_path: Path) -> None:
    assert "and not both" in runs.cai("constitution", "suggest", check=2).stderr
