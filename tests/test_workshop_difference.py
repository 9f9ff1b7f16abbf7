from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from cai import constitution
from cai.workshop.difference import compare, marked, words
from tests.runs import cai

OLD = """\
schema: 1
name: old
principles:
  - id: kind
    title: Is kind
    critique: Say where the answer is unkind to anybody.
    revision: Write the answer again, kindly.
    compare: Which of the two answers, A or B, is kinder to everybody?
  - id: clear
    title: Is clear
    compare: Which of the two answers, A or B, is clearer to a tired reader?
  - id: brief
    title: Is brief
    weight: 2.0
    domains: [x, z]
    check: {max_words: 30}
"""


def read(text: str) -> constitution.Constitution:
    return constitution.read(text)


def kinds(new: str) -> dict[str, tuple[str, list[str]]]:
    found = compare(read(OLD), read(new))
    return {c.id: (c.kind, [f.name for f in c.fields]) for c in found.changed}


def test_what_means_nothing_is_no_difference() -> None:
    head, *items = OLD.split("  - id:")
    mixed = head.replace("name: old", "name: new") + "".join("  - id:" + item for item in reversed(items))
    found = compare(read(OLD), read(mixed.replace("[x, z]", "[z, x]")))
    assert not found.changed and found.is_silent


def test_every_field_is_told_under_its_own_name() -> None:
    new = OLD.replace("kinder to everybody", "kinder").replace("weight: 2.0", "weight: 3.0").replace("30", "31")
    new = new.replace("title: Is clear", "title: Clear").replace("[x, z]", "[x]")
    assert kinds(new) == {
        "kind": ("changed", ["compare"]),
        "clear": ("changed", ["title"]),
        "brief": ("changed", ["check", "weight", "domains"]),
    }


def test_a_renamed_principle_is_recognised_by_a_text_it_kept_and_by_its_words() -> None:
    assert kinds(OLD.replace("id: clear", "id: plain")) == {"plain": ("renamed", [])}
    new = OLD.replace("id: clear", "id: plain").replace("to a tired reader", "to a hurried reader")
    assert kinds(new) == {"plain": ("renamed", ["compare"])}
    assert compare(read(OLD), read(new)).renamed == {"plain": "clear"}


def test_another_principle_is_no_renaming() -> None:
    new = OLD.replace("id: clear", "id: warm").replace("is clearer to a tired reader", "leaves people warmer")
    new = new.replace("Which of the two answers, A or B, leaves", "Say whether A or B leaves")
    assert {id_: kind for id_, (kind, _) in kinds(new).items()} == {"warm": "added", "clear": "removed"}


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_the_pieces_of_each_side_join_to_its_whole_text(old: str, new: str) -> None:
    pieces = words(old, new)
    assert "".join(text for sign, text in pieces if sign != "+") == old
    assert "".join(text for sign, text in pieces if sign != "-") == new


def test_a_changed_word_is_marked_alone() -> None:
    assert marked(words("is kinder to everybody?", "is kinder to anybody?")) == (
        "is kinder to [-everybody?-]{+anybody?+}"
    )


def test_worked_examples_are_told_one_by_one_and_only_those_that_differ(tmp_path: Path) -> None:
    kept, long, gone, come = (
        f"      - {{prompt: {text}, expect: a}}\n"
        for text in (
            "why, a: x, b: q",
            "why so late today, a: x, b: q",
            "nought, a: so be it, b: never",
            "how, b: u, a: z",
        )
    )
    old = OLD.replace("    weight: 2.0\n", f"    weight: 2.0\n    tests:\n{kept}{long}{gone}")
    new = old.replace(gone, "").replace("so late", "so very late").replace(kept, come + kept)
    (change,) = compare(read(old), read(new)).changed
    said = [marked(example) for example in change.fields[0].examples]
    assert said == [
        "{+prompt: how | a: z | b: u | expect: a+}",
        "prompt: why so {+very +}late today | a: x | b: q | expect: a",
        "[-prompt: nought | a: so be it | b: never | expect: a-]",
    ]
    (tmp_path / "old.yaml").write_text(old, encoding="utf-8")
    (tmp_path / "new.yaml").write_text(new, encoding="utf-8")
    assert f"        {said[1]}\n" in cai("constitution", "diff", tmp_path / "old.yaml", tmp_path / "new.yaml").stdout


def test_the_command_shows_words_and_says_what_is_asked_again(tmp_path: Path) -> None:
    (tmp_path / "old.yaml").write_text(OLD, encoding="utf-8")
    (tmp_path / "new.yaml").write_text(OLD.replace("kinder to everybody", "nicer to everybody"), encoding="utf-8")
    files = (tmp_path / "old.yaml", tmp_path / "new.yaml")
    said = cai("constitution", "diff", *files).stdout
    assert "~ kind (changed)" in said and "[-kinder -]{+nicer +}" in said
    assert "its comparisons are judged again" in said
    (change,) = json.loads(cai("constitution", "diff", *files, "--json").stdout)["changes"]
    assert (change["old"], change["fields"][0]["field"]) == ("kind", "compare")
    same = cai("constitution", "diff", files[0], files[0]).stdout
    assert "a run would ask nothing again" in same
    assert "did you mean" in cai("constitution", "diff", files[0], tmp_path / "neww.yaml", check=2).stderr
