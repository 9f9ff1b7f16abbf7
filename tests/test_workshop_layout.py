from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai import constitution
from cai.workshop.layout import SCHEMA_LINE, formatted, write
from tests.runs import cai

SHIPPED = sorted((Path(__file__).parent.parent / "constitutions").glob("*.yaml"))

MESSY = """\
# About this file.

# And more.
name:    'messy'
schema:  1      # the only one
principles:
- title: "Brief"  # beside
  id:  brief
  # before compare
  compare: "Which of the two answers, A or B, is shorter than the other one, all in all, counting every word of it?"
  tests:
    - {prompt: 'p # no comment', a: "x", b: z, expect: a}   # in flow
    - prompt: q
      response: |
        one

          # no comment either
        three
      expect: clean
- id: other
  title: no list
  check: {must_not_match: ['it''s', "a\\nb"], max_words: 3}
  domains: [b, a]
# the end
"""


def test_a_messy_file_is_laid_out_and_loses_nothing() -> None:
    laid_out = formatted(MESSY, "m.yaml")
    assert constitution.read(laid_out).model_dump() == constitution.read(MESSY).model_dump()
    head, *rest = laid_out.split("principles:")
    assert head.startswith("# About this file.\n\n# And more.\nschema: 1  # the only one\nname: messy\n")
    assert '      - prompt: "p # no comment"' in laid_out and "expect: a  # in flow" in laid_out
    assert "    title: Brief  # beside\n    # before compare\n    compare: >-\n" in rest[0]
    assert laid_out.endswith("\n# the end\n")


def test_what_is_laid_out_stays_as_it_is() -> None:
    once = formatted(MESSY, "m.yaml")
    assert formatted(once, "m.yaml") == once


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_constitutions_are_laid_out_and_name_their_schema(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert formatted(text, str(path)) == text
    assert text.startswith(f"{SCHEMA_LINE}constitution.schema.json\n")


def test_the_shipped_schema_is_the_present_one() -> None:
    import json

    shipped = json.loads((SHIPPED[0].parent / "constitution.schema.json").read_text(encoding="utf-8"))
    assert shipped == constitution.json_schema(), "write it anew: cai constitution schema > constitutions/…"


printable = st.text(st.characters(codec="utf-8", exclude_characters="\r\u2028\u2029\x85", exclude_categories=("Cs",)))


@settings(deadline=None)
@given(st.lists(printable.filter(lambda t: t.strip() and not constitution._HIDDEN.search(t)), min_size=1, max_size=3))
def test_any_text_reads_back_as_it_is(said: list[str]) -> None:
    tests = [{"prompt": text, "response": text, "expect": "clean"} for text in said]
    principles = [{"id": "p", "title": "T", "compare": said[0], "tests": tests}]
    read = constitution.read(write({"schema": 1, "name": "n", "principles": principles}))
    assert [t.response for t in read["p"].tests] == said
    assert read["p"].compare == said[0].strip()


def test_the_command_checks_before_it_writes(tmp_path: Path) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(MESSY, encoding="utf-8")
    assert "would change" in cai("constitution", "fmt", file, "--check", check=1).stdout
    assert file.read_text(encoding="utf-8") == MESSY
    cai("constitution", "fmt", file, "--schema", "constitution.schema.json")
    assert file.read_text(encoding="utf-8").startswith(f"{SCHEMA_LINE}constitution.schema.json\n")
    cai("constitution", "fmt", file, "--check", "--schema", "constitution.schema.json")
    broken = tmp_path / "b.yaml"
    broken.write_text(MESSY.replace("schema:  1", "schema: 2"), encoding="utf-8")
    assert "found the number 2" in cai("constitution", "fmt", broken, check=2).stderr
