from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai import fewshot
from cai.engine.scripted import ScriptedProcess
from cai.errors import UserError
from cai.trail import RunView
from tests import runs

TRANSCRIPT = (
    "\n\nHuman: Lend me your ladder.\n\nAssistant: Get your own.\n\nCritiqueRequest: Say what is rude.\n\n"
    "Critique: It is curt.\n\nRevisionRequest: Be kind.\n\nRevision: Gladly, on Sunday.\n\nHuman:"
)
TURNS = [
    ("user", "Lend me your ladder."),
    ("assistant", "Get your own."),
    ("user", "Critique request: Say what is rude."),
    ("assistant", "It is curt."),
    ("user", "Revision request: Be kind."),
    ("assistant", "Gladly, on Sunday."),
]


def write(folder: Path, content: Any) -> str:
    path = folder / "shots.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return str(path)


def chat(roles: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": roles[role == "assistant"], "content": text} for role, text in TURNS]


@pytest.mark.parametrize(
    "shape",
    [
        [TRANSCRIPT],
        [TRANSCRIPT.removesuffix("\n\nHuman:")],
        [TRANSCRIPT.removeprefix("\n\n")],
        {"samples": [chat(("User", "Assistant"))]},
        {"constitutions": [], "system_chat": [chat(("user", "assistant"))]},
    ],
    ids=["transcript", "no dangling marker", "no leading lines", "samples", "system chat"],
)
def test_critiques_in_every_published_shape_give_the_same_turns(shape: Any, tmp_path: Path) -> None:
    assert [(t.role, t.text) for t in fewshot.for_critic(write(tmp_path, shape))] == TURNS


def test_worked_comparisons_put_the_better_answer_first_and_second_by_turns(tmp_path: Path) -> None:
    row = {"prompt": "\n\nHuman: Why?\n\nAssistant:", "corrects": ["Because."], "incorrects": ["Dunno."]}
    first, second = fewshot.for_judge(write(tmp_path, [row, row])).split("Example 2.")
    assert first.startswith("Example 1.\nHuman: Why?\n\nAnswer A: Because.\n\nAnswer B: Dunno.")
    assert first.rstrip().endswith("The better answer is answer A")
    assert "Answer A: Dunno.\n\nAnswer B: Because.\n\nThe better answer is answer B" in second


def test_reasoned_comparisons_are_put_in_our_own_words(tmp_path: Path) -> None:
    prompt = (
        "\n\nHuman: Consider:\n\nH: Why?\n\n{}\n (A) [[[Because.]]]\n (B) [[[Dunno.]]]\n\nAssistant: Let's think:\n"
        "(A) answers.\n\nHuman:\nSo the answer is: (A)"
    )
    text = fewshot.for_judge(write(tmp_path, [{"prompt": prompt}]))
    assert "Principle: (as given)\n Answer A: Because.\n Answer B: Dunno." in text
    assert text.endswith("The better answer is answer A")
    assert "[[[" not in text and "{}" not in text


def test_lines_are_a_list_and_letters_name_the_better_of_two_in_the_prompt(tmp_path: Path) -> None:
    asked = "\n\nHuman: Why?\n\n(A) Because.\n(B) Dunno.\n\nAssistant: The answer is:"
    rows = [{"prompt": asked, "corrects": [f" ({letter})"], "incorrects": [" (X)"]} for letter in "AB"]
    text = fewshot.for_judge(write(tmp_path, "".join(json.dumps(row) + "\n" for row in rows)))
    assert text.count("(A) Because.\n(B) Dunno.\n\nThe better answer is answer") == 2
    assert "answer A\n\nExample 2." in text and text.endswith("answer B") and "(X)" not in text


def test_plain_text_stands_as_it_is_and_no_file_is_nothing(tmp_path: Path) -> None:
    assert fewshot.for_judge(write(tmp_path, "An example.\n")) == "An example."
    assert fewshot.for_judge(None) == "" and fewshot.for_critic(None) == ()


@pytest.mark.parametrize(
    ("read", "shape", "words"),
    [
        (fewshot.for_judge, [TRANSCRIPT], "found no worked comparisons"),
        (fewshot.for_critic, [{"prompt": "x"}], "found no worked critiques"),
        (fewshot.for_critic, "plain", "found no worked critiques"),
        (fewshot.for_judge, "[1,", "begins like JSON"),
        (fewshot.for_critic, ["\n\nHuman: a\n\nHuman: b"], "out of turn"),
    ],
)
def test_a_file_of_another_shape_is_refused_by_name(read: Any, shape: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=words) as caught:
        read(write(tmp_path, shape))
    assert "shots.json" in str(caught.value)


def test_a_run_shows_the_examples_to_critic_reviser_and_judge_and_not_to_the_policy(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=4)
    write(tmp_path, [TRANSCRIPT])
    (tmp_path / "judge.txt").write_text("A worked comparison.", encoding="utf-8")
    with ScriptedProcess() as server:
        tree = runs.config(tmp_path, url=server.url, critique__few_shot="shots.json", judge__few_shot="judge.txt")
        runs.run_json(runs.write_config(tmp_path, tree))
    run = RunView(tree["run"]["dir"])
    seen: dict[str, set[tuple[bool, bool]]] = {}
    for (key,) in run.connection.execute("SELECT key FROM calls").fetchall():
        request, _ = run.call(key)
        texts = "\n".join(m["content"] for m in request["messages"])
        last = request["messages"][-1]["content"]
        kind = next((k for k in ("Critique request", "Revision request", "The better") if last.startswith(k)), "policy")
        seen.setdefault(kind, set()).add(("Lend me your ladder." in texts, "A worked comparison." in texts))
    assert seen == {
        "policy": {(False, False)},
        "Critique request": {(True, False)},
        "Revision request": {(True, False)},
        "The better": {(False, True)},
    }
