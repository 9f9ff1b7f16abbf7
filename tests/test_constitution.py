from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cai import checks, constitution
from cai.constitution import Constitution, PairTest, Principle, ResponseTest
from cai.yamlfile import ProblemsError

SHIPPED = sorted((Path(__file__).parent.parent / "constitutions").glob("*.yaml"))

GOOD = """\
schema: 1
name: sample
description: For the tests.
principles:
  - id: brief
    title: Brief
    critique: Say what is too long.
    revision: Shorten it.
    compare: Which answer, A or B, is shorter?
    weight: 1.0
    domains: [everyday, tempting]
    tests:
      - {prompt: p, a: x, b: z, expect: a}
      - {prompt: q, response: r, expect: clean}
  - id: short-enough
    title: Short enough
    check:
      max_words: 50
      must_not_match: ['(?i)as an ai']
    tests:
      - {prompt: s, response: r, expect: clean}
"""

# One mistake each: what is replaced in GOOD and by what (`§` marks the place the message must name), then words the
# message must hold: what was found or expected, and what to do.
MISTAKES = {
    "schema of another version": ("schema: 1", "schema: §2", "found the number 2", "expected 1"),
    "schema in quotes": ("schema: 1", "schema: §'1'", "the text '1'", "without quotes"),
    "schema missing": ("schema: 1\n", "§", "no key 'schema'", "add 'schema: ...'"),
    "name missing": ("schema: 1\nname: sample\n", "§schema: 1\n", "no key 'name'", "add 'name: ...'"),
    "name misspelt": ("name: sample", "§nmae: sample", "unknown key 'nmae'", "did you mean 'name'?"),
    "name is a date": ("name: sample", "name: §2024-01-31", "as a date", "put it in quotes"),
    "name is a number": ("name: sample", "name: §17", "the number 17", "in quotes if it is text: '17'"),
    "name on two lines": ("name: sample", 'name: §"sam\\nple"', "a line break", "one line"),
    "name twice": ("description:", "§name: again\ndescription:", "'name' a second time, first in line 2", "keep one"),
    "no description": ("description: For the tests.", "§description:", "nothing after this key", "'null' for none"),
    "principles empty": (GOOD[GOOD.index("principles") :], "principles: §[]\n", "a list of 0", "at least 1"),
    "principles a mapping": (GOOD[GOOD.index("principles") :], "principles:\n  §a: b\n", "a mapping", "a list"),
    "principle is a text": ("  - id: short", "  - §wrong\n  - id: short", "the text 'wrong'", "known keys"),
    "id missing": ("- id: brief\n    title", "- §title", "no key 'id' in 'principles.0'", "add 'id: ...'"),
    "id in capitals": ("id: brief", "id: §Be_Brief", "lower-case words joined by hyphens", "write 'be-brief'"),
    "id repeated": ("id: short-enough", "id: §brief", "the id 'brief' a second time", "rename one"),
    "id a list": ("id: brief", "id: §[brief]", "found a list of 1", "expected text"),
    "title missing": ("- id: brief\n    title: Brief\n", "- §id: brief\n", "(id 'brief')", "add 'title: ...'"),
    "title empty": ("title: Brief", "title: §''", "an empty text", "write the text"),
    "title blank": ("title: Brief", "title: §'   '", "an empty text", "write the text"),
    "title no": ("title: Brief", "title: §no", "YAML 1.1 reads as the boolean false", "quotes if it is text: 'no'"),
    "title y": ("title: Brief", "title: §y", "YAML 1.1 reads as the boolean true", "'y'"),
    "title True": ("title: Brief", "title: §True", "the boolean true", "'True'"),
    "title true": ("title: Brief", "title: §true", "the boolean true", "in quotes if it is text: 'true'"),
    "title a clock time": ("title: Brief", "title: §12:30:45", "base 60", "'12:30:45'"),
    "title with NUL": ("title: Brief", 'title: §"Br\\0ief"', "U+0000", "delete it"),
    "title turned around": ("title: Brief", 'title: §"Br\\u202eief"', "U+202E", "delete it"),
    "colon in unquoted text": ("title: Brief", "title: Brief§: and plain", "': ' inside unquoted text", "in quotes"),
    "tag": ("title: Brief", "title: §!!python/object:os.system x", "'!!python/object:os.system'", "delete the tag"),
    "anchor": ("title: Brief", "title: §&t Brief", "the anchor '&t'", "delete it"),
    "alias": ("title: Brief", "title: §*t", "the alias '*t'", "write the value out"),
    "merge key": ("    title: Brief", "    §<<: {}\n    title: Brief", "merge key", "write the merged keys out"),
    "critique misspelt": ("    critique:", "    §critque:", "unknown key 'critque'", "did you mean 'critique'?"),
    "critique alone": ("- id: brief", "- §id: brief", "'critique' without 'revision'", "add 'revision: ...'"),
    "revision alone": ("- id: brief", "- §id: brief", "'revision' without 'critique'", "add 'critique: ...'"),
    "neither compare nor check": ("- id: brief", "- §id: brief", "neither 'compare' nor 'check'", "add 'compare: ...'"),
    "compare null": ("- id: brief", "- §id: brief", "neither 'compare' nor 'check'", "add 'compare: ...'"),
    "compare unfinished": ("compare: Which", "compare: §\"Which", "never closed", "close it"),
    "weight zero": ("weight: 1.0", "weight: §0", "the number 0", "above 0"),
    "weight negative": ("weight: 1.0", "weight: §-2", "the number -2", "above 0"),
    "weight infinite": ("weight: 1.0", "weight: §.inf", "not a finite number", "write a finite number"),
    "weight overflowing": ("weight: 1.0", "weight: §1e999", "too large", "write a smaller number"),
    "weight a text": ("weight: 1.0", "weight: §'1.0'", "the text '1.0'", "without quotes: 1.0"),
    "weight yes": ("weight: 1.0", "weight: §yes", "the boolean true", "write a number"),
    "weight with underscore": ("weight: 1.0", "weight: §1_0", "underscores", "write 10"),
    "weight octal": ("weight: 1.0", "weight: §012", "octal number 10", "write 12"),
    "domains a text": ("[everyday, tempting]", "§everyday", "the text 'everyday'", "as a list: ['everyday']"),
    "domains empty": ("[everyday, tempting]", "§[]", "a list of 0", "at least 1"),
    "domains off": ("[everyday, tempting]", "[everyday, §off]", "the boolean false", "'off'"),
    "domains repeated": ("[everyday, tempting]", "[everyday, §everyday]", "a second time", "delete one"),
    "domains unclosed": ("[everyday, tempting]", "[everyday, tempting\n    tests§: x", "'[' list", "put ','"),
    "test of no form": ("{prompt: p, a: x, b: z, expect: a}", "§17", "the number 17", "known keys: a, b"),
    "test of both forms": ("{prompt: q,", "{prompt: q, a: §x,", "'a' beside 'response'", "two tests"),
    "test without b": ("{prompt: p, a: x, b: z", "§{prompt: p, a: x", "no key 'b'", "add 'b: ...'"),
    "verdict unknown": ("expect: a}", "expect: §c}", "the text 'c'", "'a', 'b' or 'tie'"),
    "verdict misspelt": ("{prompt: q, response: r, expect: c", "{prompt: q, response: r, expect: §k", "'klean'",
                         "did you mean 'clean'?"),
    "response misspelt": ("{prompt: q, response", "{prompt: q, §respnse", "'respnse'", "did you mean 'response'?"),
    "check without rules": ("      max_words: 50\n      must_not_match: ['(?i)as an ai']", "      §{}", "no rule",
                            "add one of min_words"),
    "check rule unknown": ("max_words: 50", "§max_word: 50", "'max_word'", "did you mean 'max_words'?"),
    "check limit zero": ("max_words: 50", "max_words: §0", "the number 0", "at least 1"),
    "check limit a fraction": ("max_words: 50", "max_words: §50.0", "the number 50.0", "write 50"),
    "check limits crossed": ("max_words: 50", "max_words: 50\n      min_words: §60", "min_words 60 above", "lower"),
    "check flag on": ("max_words: 50", "max_words: 50\n      no_list: §on", "the boolean true", "write true"),
    "check flag in quotes": ("max_words: 50", "no_list: §'true'", "the text 'true'", "without quotes"),
    "pattern with lookahead": ("'(?i)as an ai'", "§'a(?=b)'", "at character 2", "no lookahead"),
    "pattern unclosed": ("'(?i)as an ai'", "§'(a'", "missing )", "correct the pattern"),
    "pattern with back reference": ("'(?i)as an ai'", "§'(a)\\1'", "at character 4", "no references back"),
    "pattern in double quotes": ("'(?i)as an ai'", '"§\\d"', "backslash", "single quotes"),
    "patterns not a list": ("['(?i)as an ai']", "§(?i)as an ai", "the text '(?i)as an ai'", "as a list"),
    "tab": ("    title: Brief\n", "§\ttitle: Brief\n", "a tab", "spaces"),
    "key beside the list": ("  - id: short", "  §id: short", "in a list", "'- '"),
    "second document": ("  - id: short", "§---\n  - id: short", "a second document", "delete the line '---'"),
    "directive": ("schema: 1", "§%YAML 1.1\n---\nschema: 1", "directive", "delete the line"),
    "control character": ("Shorten it.", "Shorten§\x07 it.", "U+0007", "delete it"),
    "unicode line end": ("Shorten it.", "Shorten§\u2028 it.", "U+2028", "delete it"),
}  # fmt: skip
_ALSO = {
    # The second edit of mistakes that need one to stand alone.
    "critique alone": ("    revision: Shorten it.\n", ""),
    "revision alone": ("    critique: Say what is too long.\n", ""),
    "neither compare nor check": ("    compare: Which answer, A or B, is shorter?\n", ""),
    "compare null": ("compare: Which answer, A or B, is shorter?", "compare: ~"),
}


def broken(name: str) -> tuple[str, tuple[int, int]]:
    """Return the text with this mistake and the place its message must name."""
    text = GOOD
    for old, new in filter(None, (MISTAKES[name][:2], _ALSO.get(name))):
        assert old in text
        text = text.replace(old, new, 1)
    before, after = text.split("§")
    return before + after, (before.count("\n") + 1, len(before) - before.rfind("\n"))


def problems_of(text: str) -> ProblemsError:
    with pytest.raises(ProblemsError) as caught:
        constitution.read(text, source_name="c.yaml")
    return caught.value


def test_the_good_one_is_good() -> None:
    assert [p.id for p in constitution.read(GOOD).principles] == ["brief", "short-enough"]


@pytest.mark.parametrize("name", MISTAKES)
def test_mistake_is_told_with_place_and_remedy(name: str) -> None:
    text, place = broken(name)
    error = problems_of(text)
    message = str(error)
    assert len(error.problems) == 1, message
    problem = error.problems[0]
    assert (problem.line, problem.col) == place, message
    assert message.startswith(f"c.yaml:{problem.line}:{problem.col}: found ")
    for words in MISTAKES[name][2:]:
        assert words in message, message
    assert error.exit_code == 2


def test_all_mistakes_of_a_file_are_told_at_once_in_order() -> None:
    text = GOOD.replace("title: Brief", "title: no").replace("name: sample", "nmae: sample")
    text = text.replace("id: short-enough", "id: brief").replace("max_words: 50", "max_words: 0")
    text = text.replace("weight: 1.0\n", "weight: -1\n    weight: 2\n").replace("expect: a}", "expect: c}")
    problems = problems_of(text).problems
    places = [(p.line, p.col) for p in problems]
    assert places == sorted(places)
    assert [p.line for p in problems] == [2, 6, 10, 11, 14, 16, 19]


def test_problems_are_json_too() -> None:
    error = problems_of(GOOD.replace("schema: 1", "schema: 2"))
    assert json.loads(json.dumps(error.as_json())) == [
        {
            "file": "c.yaml",
            "line": 1,
            "col": 9,
            "message": "found the number 2 in 'schema', expected 1",
            "hint": "it means: the version of this format; write 1",
            "severity": "error",
        }
    ]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_constitutions_lint_clean(path: Path) -> None:
    assert constitution.lint(path) == []


def test_something_is_shipped() -> None:
    assert SHIPPED


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_checks_agree_with_their_own_examples(path: Path) -> None:
    for principle in constitution.load(path).principles:
        for index, test in enumerate(principle.tests if principle.check else ()):
            where = (principle.id, index)
            if isinstance(test, ResponseTest):
                assert checks.run(principle.check, test.response).passed == (test.expect == "clean"), where
            else:
                p_a = {"a": 1.0, "b": 0.0, "tie": 0.5}[test.expect]
                assert checks.compare(principle.check, test.a, test.b) == p_a, where


def test_an_edit_to_one_text_changes_only_its_id() -> None:
    before = constitution.read(GOOD)
    for part, old, new in (
        ("critique", "Say what is too long.", "Say what can go."),
        ("revision", "Shorten it.", "Shorten it much."),
        ("compare", "is shorter?", "is the shorter one?"),
    ):
        after = constitution.read(GOOD.replace(old, new))
        changed = {p for p in ("critique", "revision", "compare") if _id(before, p) != _id(after, p)}
        assert changed == {part}
        assert after["short-enough"].part_ids == before["short-enough"].part_ids
        assert after.id != before.id


def _id(of: Constitution, part: str) -> str:
    return of["brief"].id_of(part)  # type: ignore[arg-type]


def test_a_changed_limit_changes_the_id_of_the_check() -> None:
    before, after = constitution.read(GOOD), constitution.read(GOOD.replace("max_words: 50", "max_words: 51"))
    assert before["short-enough"].id_of("check") != after["short-enough"].id_of("check")


@pytest.mark.parametrize(
    "edit",
    [
        ("name: sample", "name: other"),
        ("description: For the tests.\n", ""),
        ("expect: clean", "expect: flagged"),
        ("schema: 1", "# a comment\nschema: 1"),
        ("[everyday, tempting]", "[tempting, everyday]"),
        ("weight: 1.0", "weight: 1"),
        ("    weight: 1.0\n", ""),
        ("Shorten it.", "|\n      Shorten it.\n"),
        ("Shorten it.", "'Shorten it.'"),
        ("max_words: 50", "max_words: 50\n      no_list: false"),
    ],
    ids=lambda edit: edit[1].strip() or "left out",
)
def test_what_no_model_sees_does_not_change_the_id(edit: tuple[str, str]) -> None:
    assert edit[0] in GOOD
    assert constitution.read(GOOD.replace(*edit)).id == constitution.read(GOOD).id


@given(st.randoms())
def test_key_and_principle_order_do_not_change_the_id(random) -> None:
    data = yaml.safe_load(GOOD)

    def shuffled(value):
        if isinstance(value, dict):
            keys = list(value)
            random.shuffle(keys)
            return {key: shuffled(value[key]) for key in keys}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    mixed = shuffled(data)
    random.shuffle(mixed["principles"])
    again = constitution.read(yaml.safe_dump(mixed, sort_keys=False))
    assert again.id == constitution.read(GOOD).id


def test_a_part_it_does_not_have_has_no_id() -> None:
    with pytest.raises(KeyError):
        constitution.read(GOOD)["short-enough"].id_of("compare")


def test_lines_can_be_cited() -> None:
    read = constitution.read(GOOD, source_name="c.yaml")
    assert read.line_of("brief") == "c.yaml:5"
    assert read.line_of("brief", "compare") == "c.yaml:9"
    assert read.line_of("brief", "tests", 1) == "c.yaml:14"
    assert read.line_of("short-enough", "check", "must_not_match", 0) == "c.yaml:19"
    assert read.line_of("short-enough", "compare") == "c.yaml:15"
    with pytest.raises(KeyError):
        read.line_of("unknown")


def test_principles_apply_by_domain() -> None:
    read = constitution.read(GOOD)
    assert [p.id for p in read.for_domain("everyday")] == ["brief", "short-enough"]
    assert [p.id for p in read.for_domain("general")] == ["short-enough"]


def test_texts_are_data() -> None:
    said = "Is {{ 7 * 7 }} or {response_b} or %s or $x {% raw %} better?"
    read = constitution.read(GOOD.replace("Which answer, A or B, is shorter?", f"'{said}'"))
    assert read["brief"].compare == said


def test_a_check_principle_may_leave_the_critique_to_its_check() -> None:
    text = GOOD.replace("    title: Short enough\n", "    title: Short enough\n    revision: Shorten it.\n")
    assert constitution.read(text)["short-enough"].critique is None


def test_forms_of_test_are_told_apart() -> None:
    kinds = [type(test) for test in constitution.read(GOOD)["brief"].tests]
    assert kinds == [PairTest, ResponseTest]


def test_rules_hold_for_principles_made_in_code() -> None:
    with pytest.raises(ValueError, match="neither 'compare' nor 'check'"):
        Principle(id="x", title="X")
    made = Constitution(schema_version=1, name="x", principles=(Principle(id="x", title="X", compare="A or B?"),))
    assert made.line_of("x") == "x"


def test_it_survives_being_written_as_json() -> None:
    read = constitution.read(GOOD)
    assert Constitution.model_validate_json(read.model_dump_json(by_alias=True)).id == read.id


WARNINGS = {
    "no tests": ("    tests:\n      - {prompt: s, response: r, expect: clean}\n", "", 15, "found no tests"),
    "no question": ("is shorter?", "is shorter.", 9, "found no question"),
    "heavy": ("weight: 1.0", "weight: 3", 10, "75% of all"),
    "same title": ("title: Short enough", "title: brief", 16, "title of 'brief' again"),
    "long": ("Shorten it.", "Shorten it. " * 150, 8, "found 300 words"),
    "beside a check": ("    check:", "    compare: Is A or B good?\n    check:", 17, "which decides alone"),
}


@pytest.mark.parametrize("name", WARNINGS)
def test_unwise_things_are_warned_about(name: str, tmp_path: Path) -> None:
    old, new, line, words = WARNINGS[name]
    assert old in GOOD
    file = tmp_path / "c.yaml"
    file.write_text(GOOD.replace(old, new), encoding="utf-8")
    (problem,) = constitution.lint(file)
    assert (problem.severity, problem.line) == ("warning", line)
    assert words in problem.message
    assert constitution.load(file).name == "sample"


def test_twins_are_warned_about(tmp_path: Path) -> None:
    twin = GOOD[GOOD.index("  - id: brief") :].replace("brief", "brief-too").replace("short-enough", "short-too")
    twin = twin.replace("title: Brief", "title: Brevity").replace("title: Short enough", "title: Short")
    file = tmp_path / "c.yaml"
    file.write_text(GOOD + twin.replace("is shorter?", "is much shorter?"), encoding="utf-8")
    assert [p.message.split(" (")[0] for p in constitution.lint(file)] == [
        "found nearly the words of 'brief'",
        "found the check of 'short-enough' again",
    ]


def test_lint_returns_errors_before_warnings(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD.replace("is shorter?", "is shorter.").replace("weight: 1.0", "weight: 0"), encoding="utf-8")
    assert [(p.severity, p.line) for p in constitution.lint(file)] == [("error", 10)]


def test_the_schema_describes_every_key() -> None:
    schema = constitution.json_schema()
    assert schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    objects = {"": schema, **schema["$defs"]}
    origins = {"Origin", "PrincipleOrigin", "Around"}
    assert set(objects) == {"", "Principle", "Check", "PairTest", "Proposition", "ResponseTest"} | origins
    for name, part in objects.items():
        assert part["additionalProperties"] is False, name
        assert all(value.get("description") for value in part["properties"].values()), name
    assert {"required": ["check"]} in objects["Principle"]["anyOf"]


def test_the_schema_accepts_what_is_shipped_and_refuses_mistakes() -> None:
    jsonschema = pytest.importorskip("jsonschema")
    validator = jsonschema.Draft202012Validator(constitution.json_schema())
    for path in SHIPPED:
        validator.validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    for old, new in (("compare:", "compere:"), ("id: brief", "id: Brief"), ("title: Brief", "title: ' '")):
        assert not validator.is_valid(yaml.safe_load(GOOD.replace(old, new, 1)))
