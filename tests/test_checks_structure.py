"""What checks can ask beyond limits and patterns: JSON, lists, a language, banned phrases, a function of one's own."""

from __future__ import annotations

import json
import re
from importlib.metadata import EntryPoint
from itertools import permutations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai import checks, constitution
from cai.checks import Check, functions
from cai.checks.language import NAMES, other_than
from cai.errors import UserError
from cai.trail import RunView
from cai.yamlfile import ProblemsError
from tests import runs

# -- JSON and lists ----------------------------------------------------------------------------------------------------


def broken(check: Check, text: str) -> list[str]:
    return [failure.rule for failure in checks.run(check, text).failures]


@pytest.mark.parametrize(
    ("kind", "text", "passes"),
    [
        ("any", "3", True),
        ("any", ' {"a": [1, null]}\n', True),
        ("object", '{"a": 1}', True),
        ("object", "[1]", False),
        ("list", "[]", True),
        ("list", '{"a": 1}', False),
        ("any", "Here it is: {}", False),
        ("any", "```json\n{}\n```", False),
        ("any", '{"a": 1, "a": 2}', False),
        ("any", "NaN", False),
        ("any", "", False),
        ("any", "[" * 100_000, False),
        ("any", "1" * 1_000_001, False),
    ],
)
def test_the_whole_answer_is_the_json_that_is_asked_for(kind: str, text: str, passes: bool) -> None:
    assert (broken(Check(is_json=kind), text) == []) is passes


def test_a_json_fault_is_told_with_its_place_and_what_is_missing_by_key() -> None:
    said = checks.run(Check(is_json="object"), '{"a": 1,\n "b" 2}').sentence()
    assert "(line 2, character 6)" in said
    result = checks.run(Check(json_keys=("name", "age")), '{"name": "Ida"}')
    assert [f.found for f in result.failures] == ["it has no key 'age'"]


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda t: st.lists(t)))
def test_what_json_writes_it_reads(value: object) -> None:
    assert broken(Check(is_json="any"), json.dumps(value)) == []


def test_list_lines_are_counted_between_limits() -> None:
    text = "Do this:\n- one\n- two\n3. three\n\nThat is all - really."
    assert checks.count_items(text) == 3
    assert broken(Check(min_items=3, max_items=3), text) == []
    assert broken(Check(min_items=4), text) == ["min_items"]
    assert broken(Check(max_items=2), text) == ["max_items"]


@pytest.mark.parametrize(
    ("rules", "words"),
    [
        ({"min_items": 3, "max_items": 2}, "above max_items 2"),
        ({"min_items": 1, "no_list": True}, "beside no_list"),
        ({"is_json": "list", "json_keys": ["a"]}, "expected an object"),
        ({"banned_file": "../up.txt"}, "beside the constitution"),
        ({"banned_file": "manifest.json"}, "beside the constitution"),
    ],
)
def test_rules_that_no_answer_can_keep_are_refused(rules: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Check.model_validate_json(json.dumps(rules))


# -- language ----------------------------------------------------------------------------------------------------------

SAID = {
    "de": "Ich habe das Brot gestern nicht mehr geholt, weil der Laden schon zu war und es auch noch regnete.",
    "en": "I did not get the bread yesterday, because the shop was already closed and it was raining as well.",
    "es": "Ayer no compré el pan, porque la tienda ya estaba cerrada y además llovía mucho en todo el barrio.",
    "fr": "Je n'ai pas pris le pain hier, parce que la boutique était déjà fermée et qu'il pleuvait dans la rue.",
    "it": "Ieri non ho preso il pane, perché il negozio era già chiuso e pioveva anche molto su tutta la città.",
    "nl": "Ik heb het brood gisteren niet gehaald, omdat de winkel al dicht was en het ook nog regende in de stad.",
    "pl": "Nie wziąłem wczoraj chleba, bo sklep był już zamknięty, a na ulicy tak bardzo padało, że nie dało się iść.",
    "pt": "Não comprei o pão ontem, porque a loja já estava fechada e também chovia muito na rua e em todo o bairro.",
    "ru": "Я не купил вчера хлеб, потому что магазин был уже закрыт, и на улице шёл дождь, так что я остался дома.",
    "sv": "Jag köpte inte brödet igår, för att affären var redan stängd och det regnade också mycket på gatan.",
    "uk": "Я не купив учора хліб, бо крамниця була вже зачинена, і на вулиці йшов дощ, так що я був удома.",
    "el": "Δεν πήρα ψωμί χθες, γιατί το μαγαζί ήταν κλειστό.",
    "ar": "لم أشتر الخبز أمس لأن المتجر كان مغلقا.",
    "he": "לא קניתי לחם אתמול כי החנות הייתה סגורה.",
    "hi": "मैंने कल रोटी नहीं खरीदी क्योंकि दुकान बंद थी।",
    "th": "เมื่อวานฉันไม่ได้ซื้อขนมปังเพราะร้านปิด",
    "zh": "昨天我没有买面包，因为商店已经关门了。",
    "ja": "昨日は店が閉まっていたので、パンを買いませんでした。",
    "ko": "어제는 가게가 닫혀서 빵을 사지 못했습니다.",
}


def test_there_is_a_sentence_of_every_language() -> None:
    assert set(SAID) == set(NAMES)


@pytest.mark.parametrize("name", SAID)
def test_a_language_passes_as_itself(name: str) -> None:
    assert other_than(name, SAID[name]) == ""


@pytest.mark.parametrize(("wanted", "given_"), list(permutations(SAID, 2)))
def test_every_other_language_is_told(wanted: str, given_: str) -> None:
    assert other_than(wanted, SAID[given_]) != ""


@pytest.mark.parametrize("text", ["", "Ok!", "42", "Oui, merci.", "print(x)", "🙂🙂🙂", "Köln", "a b c d e f g h i j"])
def test_what_cannot_be_told_passes(text: str) -> None:
    assert other_than("en", text) == ""


def test_an_english_answer_about_foreign_words_is_english() -> None:
    text = "In German you would say 'Wo ist der Bahnhof?', which means that you are looking for the station."
    assert other_than("en", text) == ""
    assert other_than("de", text) == "English"


# -- banned phrases ----------------------------------------------------------------------------------------------------

TEXT = """\
schema: 1
name: banned
principles:
  - id: no-cant
    title: No cant
    revision: Say it plainly.
    check: {banned_file: cant.txt}
"""


def write(folder: Path, phrases: str | bytes | None, text: str = TEXT) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "c.yaml").write_text(text, encoding="utf-8")
    if phrases is not None:
        (folder / "cant.txt").write_bytes(phrases if isinstance(phrases, bytes) else phrases.encode())
    return folder / "c.yaml"


def test_phrases_are_found_as_whole_words_in_any_case_and_spacing(tmp_path: Path) -> None:
    check = constitution.load(write(tmp_path, "# cant\nat the end of the day\n\ncafé\nC++\n"))["no-cant"].check
    result = checks.run(check, "Well,\nAt the  end of\nthe day it rains.")
    assert not result.passed
    assert result.failures[0].where == "line 2, character 1"
    assert "'cant.txt' bans it" in result.sentence()
    assert not checks.run(check, "Ein CAFÉ, bitte.").passed
    assert not checks.run(check, "I like c++.").passed
    assert checks.run(check, "Cafés and the end of the daylight, cant").passed


@pytest.mark.parametrize(
    ("phrases", "words"),
    [
        (None, "no readable file"),
        ("# only a comment\n...\n", "no phrase"),
        (b"caf\xe9\n", "the byte 0xe9"),
        ("x\n" * 600_000, "more than 1,048,576 bytes"),
    ],
    ids=["missing", "empty", "latin-1", "large"],
)
def test_a_phrase_file_that_cannot_be_used_is_told_at_its_key(phrases, words: str, tmp_path: Path) -> None:
    with pytest.raises(ProblemsError, match=words) as caught:
        constitution.load(write(tmp_path, phrases))
    assert f"{tmp_path}/c.yaml:7:26: found" in str(caught.value)


def test_what_the_file_says_is_part_of_the_checks_id(tmp_path: Path) -> None:
    one = constitution.load(write(tmp_path / "a", "synergy\n"))
    same = constitution.load(write(tmp_path / "b", "synergy\n"))
    other = constitution.load(write(tmp_path / "c", "leverage\n"))
    assert one.id == same.id != other.id


def test_a_check_whose_file_was_never_read_refuses_to_decide() -> None:
    with pytest.raises(UserError, match="has not been read"):
        checks.run(constitution.read(TEXT)["no-cant"].check, "text")


def test_many_phrases_are_searched_for_in_one_go(tmp_path: Path) -> None:
    phrases = "\n".join(f"phrase number {i} of many" for i in range(20_000))
    check = constitution.load(write(tmp_path, phrases))["no-cant"].check
    assert not checks.run(check, "x " * 50_000 + "phrase number 19999 of many").passed
    assert checks.run(check, "phrase number 20000 of many " * 5_000).passed


def test_a_check_criticises_by_place_is_read_by_the_reviser_and_judges_by_itself(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=8)
    file = write(tmp_path, None, TEXT.replace("{banned_file: cant.txt}", '{must_not_match: ["!"]}'))
    tree = runs.config(tmp_path, constitution=str(file))
    runs.run_json(runs.write_config(tmp_path, tree))
    with RunView(tree["run"]["dir"]) as run:
        check = run.constitution["no-cant"].check
        ids = run.connection.execute("SELECT tag, id FROM records WHERE tag IN ('critique', 'revision')").fetchall()
        critiques = {id_: run.record(id_) for tag, id_ in ids if tag == "critique"}
        for found in critiques.values():
            result = checks.run(check, run.record(found.answer_id).text)
            assert (found.call_key, found.passed, found.text) == (None, result.passed, result.sentence())
            assert found.passed or re.search(r"\(line \d+, character \d+\)", found.text)
        revisions = [run.record(id_) for tag, id_ in ids if tag == "revision"]
        for revision in revisions:
            turns = run.call(revision.call_key)[0]["messages"]
            assert {"role": "assistant", "content": critiques[revision.critique_id].text} in turns
        p_as = set()
        for end in run.ended("walk"):
            (judgment,) = end.decisions
            assert judgment.call_key is None and judgment.p_a == checks.compare(check, *(arm.text for arm in end.arms))
            p_as.add(judgment.p_a)
    assert {found.passed for found in critiques.values()} == {True, False} and revisions and p_as > {0.5}


def test_a_run_keeps_the_phrase_file_and_refuses_a_changed_one(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=4)
    file = write(tmp_path, "soft\nsteps\n")
    tree = runs.config(tmp_path, constitution=str(file))
    tree["models"] = {"policy": {"checkpoint": "scripted"}}
    path = runs.write_config(tmp_path, tree)
    runs.run_json(path)
    kept = Path(tree["run"]["dir"]) / "cant.txt"
    assert kept.read_text(encoding="utf-8") == "soft\nsteps\n"
    assert runs.cai("report", tree["run"]["dir"]).returncode == 0
    (tmp_path / "cant.txt").write_text("soft\n", encoding="utf-8")
    assert "'cant.txt' has changed since this run began" in runs.cai("run", path, check=2).stderr


# -- a function of one's own -------------------------------------------------------------------------------------------


def polite(answer: str) -> str | None:
    return None if "please" in answer else "It does not say please."


def rude(answer: str) -> str:
    raise RuntimeError("no")


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    points = {n: EntryPoint(n, f"{__name__}:{n}", functions.GROUP) for n in ("polite", "rude")}
    monkeypatch.setattr(
        functions, "entry_points", lambda group, name=None: [p for n, p in points.items() if name in (None, n)]
    )
    functions._function.cache_clear()
    yield monkeypatch
    functions._function.cache_clear()


def test_a_function_is_not_called_unless_the_environment_names_it(installed: pytest.MonkeyPatch) -> None:
    installed.delenv(functions.ALLOWED, raising=False)
    with pytest.raises(UserError, match="export CAI_CHECK_FUNCTIONS=polite"):
        checks.run(Check(function="polite"), "Give me that.")


def test_a_run_refuses_such_a_function_before_it_asks_anything(installed: pytest.MonkeyPatch, tmp_path: Path) -> None:
    installed.delenv(functions.ALLOWED, raising=False)
    runs.write_inputs(tmp_path, n_prompts=1)
    file = tmp_path / "constitution.yaml"
    file.write_text(file.read_text(encoding="utf-8").replace("{max_words: 30}", "{function: polite}"), encoding="utf-8")
    config = runs.write_config(tmp_path, runs.config(tmp_path))
    assert "export CAI_CHECK_FUNCTIONS=polite" in runs.cai("run", config, check=2).stderr
    assert not (tmp_path / "runs" / "run" / "manifest.json").exists()
    told = "warning: found the function 'polite', which is not allowed here"
    assert told in runs.cai("constitution", "lint", file).stdout
    installed.setenv(functions.ALLOWED, "polite")
    assert told not in runs.cai("constitution", "lint", file).stdout
    assert runs.run_json(config)["accounting"]["failed"] == 0


def test_an_allowed_function_says_what_is_wrong(installed: pytest.MonkeyPatch) -> None:
    installed.setenv(functions.ALLOWED, "rude, polite,absent")
    assert checks.run(Check(function="polite"), "please").passed
    said = checks.run(Check(function="polite"), "Give me that.").sentence()
    assert said == "It does not say please; 'polite' must be satisfied."
    with pytest.raises(UserError, match="RuntimeError: no"):
        checks.run(Check(function="rude"), "x")
    with pytest.raises(UserError, match="expected one of polite, rude"):
        checks.run(Check(function="absent"), "x")
