"""Published formats in and out: authored look-alikes with the quirks of the real files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai import constitution, yamlfile
from cai.constitution import Constitution
from cai.errors import UserError
from cai.workshop.interchange import export_text, import_text, left_out
from tests.runs import cai

REQUESTS = {
    "harmful0": {
        "prompt": ["\n\nCritiqueRequest: Say what in the assistant's last response is rude.\n\nCritique:"],
        "edit_request": "\n\nRevisionRequest: Please rewrite it politely.\n\nRevision:",
    },
    "harmful1": {
        "prompt": ["\n\nCritiqueRequest:  Two spaces, and a trailing one. \n\nCritique:"],
        "edit_request": '\n\nRevisionRequest: Ünïcode & "quotes".\n\nRevision: ',
    },
    "Odd Key": {
        "prompt": ["Critique this: no marker at all"],
        "edit_request": "\n\nRevisionRequest: First line.\nSecond line.\n\nRevision:",
    },
}
COMPARISONS = [
    "\nPlease choose the response that is kindest. Options:",
    "\nWhich response is less preachy?  Options:",
    "Choose the shorter one.",
]


def back(text: str) -> str:
    """A file after a round trip through a constitution on disk."""
    imported = import_text(text, "some.json", name="some")
    return export_text(constitution.read(imported.yaml))


@pytest.mark.parametrize("value", [REQUESTS, COMPARISONS], ids=["critique-revision", "comparison"])
@pytest.mark.parametrize("indent", [None, 1, 2, 4])
@pytest.mark.parametrize("escape", [True, False])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_papers_formats_come_back_byte_for_byte(value: Any, indent: Any, escape: bool, end: str) -> None:
    text = json.dumps(value, indent=indent, ensure_ascii=escape) + end
    assert import_text(text, "some.json", name="some").is_lossless
    assert back(text) == text


texts = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp")), min_size=1).filter(
    lambda t: t.strip()
)


@settings(deadline=None)
@given(st.lists(texts.map(lambda t: f"\n{t} Options:"), min_size=1, max_size=4))
def test_any_texts_come_back_byte_for_byte(values: list[str]) -> None:
    text = json.dumps(values)
    assert back(text) == text


def test_an_edited_text_goes_back_into_its_place() -> None:
    imported = import_text(json.dumps(REQUESTS), "some.json", name="some").yaml
    edited = constitution.read(imported.replace("rewrite it politely", "rewrite it warmly"))
    wanted = json.dumps(REQUESTS).replace("rewrite it politely", "rewrite it warmly")
    assert export_text(edited) == wanted


def test_imported_principles_are_ready_to_run_and_keep_their_names() -> None:
    imported = import_text(json.dumps(REQUESTS), "x/some.json", name="some")
    assert [p.id for p in imported.constitution.principles] == ["harmful0", "harmful1", "odd-key"]
    first = imported.constitution["harmful0"]
    assert first.critique == "Say what in the assistant's last response is rude."
    assert first.compare.startswith(first.critique) and "A or B" in first.compare
    assert any("read them before you judge" in note for note in imported.notes)
    assert imported.yaml.startswith("# Imported from some.json (critique-revision).")


def test_what_something_was_imported_from_changes_no_id() -> None:
    imported = import_text(json.dumps(COMPARISONS), "c.json", name="c").constitution
    bare = Constitution.model_validate(
        imported.model_dump(by_alias=True, exclude={"origin": True, "principles": {"__all__": {"origin"}}})
    )
    assert bare.id == imported.id


def test_critics_and_chats_are_read_and_the_chats_are_pointed_out() -> None:
    value = {"constitutions": [{"critic": "Is it cold?", "revision": "Warm it."}], "system_chat": [[]] * 2}
    imported = import_text(json.dumps(value, indent=2), "c.json", name="c")
    assert imported.format == "critic-revision" and not imported.is_lossless
    assert json.loads(export_text(imported.constitution)) == {"constitutions": value["constitutions"]}
    assert any("critique.few_shot" in note for note in imported.notes)


@pytest.mark.parametrize(
    "text",
    [
        '["Be kind.", "Be brief."]',
        "Be kind.\n\n# a comment\nBe brief.\n",
        "- Be kind.\n- Be brief.\n",
        "Follow these:\n\n  1. Be kind.\n  2. Be brief.\n\nThank you.",
        "1. Read all.\n2. Decide.\n```RULES\nSome words:\n 1. Be kind.\n 2. Be brief.\n```\n",
        '{"id": "k", "comparison_request": "Be kind."}\n{"comparison_request": "Be brief."}\n',
    ],
    ids=["json", "lines", "bullets", "numbered", "fenced", "jsonl"],
)
def test_lists_of_every_kind_give_the_same_texts(text: str) -> None:
    imported = import_text(text, "list", name="list")
    assert [p.compare for p in imported.constitution.principles] == ["Be kind.", "Be brief."]


def test_equal_texts_get_ids_of_their_own() -> None:
    imported = import_text('["Be kind.", "Be kind.", "!?!"]', "l", name="l").constitution
    assert [p.id for p in imported.principles] == ["be-kind", "be-kind-2", "principle"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{}", "unknown shape"),
        ('{"a": {"prompt": ["x", "y"], "edit_request": "z"}}', "unknown shape"),
        ('{"constitutions": [{"critic": "x"}]}', "expected both"),
        ('["\\n\\nHuman: x\\n\\nAssistant: y\\n\\nCritiqueRequest: z"]', "give such a file as critique.few_shot"),
        ('{"samples": [[]]}', "judge.few_shot"),
        ('[{"prompt": "x", "corrects": ["y"], "incorrects": ["z"]}]', "judge.few_shot"),
        ("\n# only a comment\n", "no principle"),
        ('{"id": "a"}\n', "unknown shape"),
        ('{"id": "a"}\n{"id": "b"}\n', "list:1: found no text"),
        ('{"text": "a"}\n{bad}\n', "list:2: not JSON"),
        ('["ok", "hidden \\u202e text"]', "U+202E"),
    ],
)
def test_what_cannot_be_read_is_told(text: str, words: str) -> None:
    with pytest.raises(UserError) as caught:
        import_text(text, "list", name="list")
    assert words in str(caught.value)


def test_an_export_needs_a_format_and_names_what_has_no_place() -> None:
    made = constitution.read(
        "schema: 1\nname: m\nprinciples:\n"
        "  - {id: a, title: A, critique: c, revision: r, compare: 'Is A or B a?'}\n"
        "  - {id: b, title: B, compare: 'Is A or B b?'}\n"
    )
    with pytest.raises(UserError, match="choose one of"):
        export_text(made)
    assert left_out(made, "critique-revision") == ["b"]
    assert json.loads(export_text(made, "critique-revision")) == {
        "a": {"prompt": ["\n\nCritiqueRequest: c\n\nCritique:"], "edit_request": "\n\nRevisionRequest: r\n\nRevision:"}
    }
    assert json.loads(export_text(made, "comparison")) == ["\nIs A or B a? Options:", "\nIs A or B b? Options:"]


def test_the_commands_write_files_that_lint_and_come_back(tmp_path: Path) -> None:
    source, made, out = tmp_path / "s.json", tmp_path / "c.yaml", tmp_path / "o.json"
    source.write_text(json.dumps(REQUESTS), encoding="utf-8")
    told = cai("constitution", "import", source, "--out", made)
    assert "an export gives the same bytes" in told.stderr
    assert cai("constitution", "lint", made).returncode == 0
    assert cai("constitution", "fmt", made, "--check").returncode == 0
    cai("constitution", "export", made, "--out", out)
    assert out.read_bytes() == source.read_bytes()
    assert "stands there already" in cai("constitution", "export", made, "--out", out, check=2).stderr
    assert yamlfile.load(made, Constitution).value.name == "s"
