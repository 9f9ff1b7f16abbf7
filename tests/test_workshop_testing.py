from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest

from cai import constitution
from cai.engine.model import Reply
from cai.workshop import testing
from tests.runs import cai
from tests.workshop_judge import FunctionJudge, answers_of, heard

TEXT = """\
schema: 1
name: tested
principles:
  - id: kind
    title: Is kind
    critique: Say where the answer is unkind.
    revision: Write it again, kindly.
    compare: Which answer, A or B, is kinder?
    tests:
      - {prompt: p one, a: a kind word, b: a harsh word, expect: a}
      - {prompt: p two, a: a harsh word, b: a kind word, expect: b}
      - {prompt: p three, a: a kind word, b: a kind deed, expect: tie}
      - {prompt: p four, response: a harsh word, expect: flagged}
      - {prompt: p five, response: a kind word, expect: clean}
  - id: brief
    title: Is brief
    check: {max_words: 3}
    tests:
      - {prompt: q, a: one two, b: one two three four, expect: a}
      - {prompt: r, response: one two three four, expect: clean}
  - id: bare
    title: Has no tests
    compare: Which answer, A or B, is better?
"""


def kinder(head: str, tail: str) -> float:
    """A judge that knows kindness when it sees it, whatever the order."""
    if "A: there is" in tail:
        is_fault = "a harsh word" in head
        return 0.9 if is_fault == ("A: there is a fault" in tail) else 0.1
    first, second = ("kind" in text for text in answers_of(head))
    return 0.5 if first == second else 0.9 if first else 0.1


def report_of(tmp_path: Path, believe=kinder, *overrides: str, text: str = TEXT) -> testing.Report:
    read = constitution.read(text, source_name="c.yaml")

    async def work(held):
        return await testing.run(read, read.principles, held)

    return heard(FunctionJudge(believe), tmp_path, work, *overrides)


def test_a_good_judge_passes_every_example_it_is_asked(tmp_path: Path) -> None:
    report = report_of(tmp_path)
    assert [(t.got, t.passed) for t in report.tests if t.principle == "kind"] == [
        ("a", True), ("b", True), ("tie", True), ("flagged", True), ("clean", True),
    ]  # fmt: skip
    kind = report.outcomes[0].as_dict()
    assert kind["accuracy"]["value"] == kind["swap_consistency"]["value"] == 1
    assert kind["accuracy"]["low"] == pytest.approx(0.566, abs=0.001)  # Wilson, 5 of 5


def test_checks_are_decided_without_a_model_and_fail_at_their_line(tmp_path: Path) -> None:
    read = constitution.read(TEXT, source_name="c.yaml")
    assert not testing.needs_model([read["brief"]])
    passed, failed = testing.run_checks(read, [read["brief"]])
    assert passed.passed and not failed.passed
    assert failed.place == "c.yaml:20"
    assert "4 words" in failed.words


def test_a_judge_that_always_says_a_abstains_and_fails(tmp_path: Path) -> None:
    report = report_of(tmp_path, lambda head, tail: 0.8)
    kind = report.outcomes[0].as_dict()
    assert (kind["passed"], kind["abstained"], kind["swap_consistency"]["value"]) == (0, 5, 0)
    assert all(t.words == "Because of this." for t in report.failures if t.principle == "kind")


def test_averaging_judges_do_not_abstain(tmp_path: Path) -> None:
    report = report_of(tmp_path, lambda head, tail: 0.8, "judge.on_disagreement=average")
    assert report.outcomes[0].as_dict()["abstained"] == 0


def test_what_cannot_be_read_is_unusable_and_never_a_verdict(tmp_path: Path) -> None:
    report = report_of(tmp_path, lambda head, tail: Reply(error="no_probabilities"))
    kind = report.outcomes[0].as_dict()
    assert (kind["unusable"], kind["passed"], kind["swap_consistency"]) == (5, 0, None)


def test_every_principle_is_told_even_without_examples(tmp_path: Path) -> None:
    bare = report_of(tmp_path).outcomes[-1].as_dict()
    assert (bare["principle"], bare["tests"], bare["accuracy"]) == ("bare", 0, None)


def test_asking_again_asks_no_model(tmp_path: Path) -> None:
    read, judge = constitution.read(TEXT, source_name="c.yaml"), FunctionJudge(kinder)

    async def work(held):
        return await testing.run(read, read.principles, held)

    first = heard(judge, tmp_path, work)
    n = judge.n_scored, judge.n_written
    assert heard(judge, tmp_path, work) == first
    assert (judge.n_scored, judge.n_written) == n == (10, 2)


def test_junit_names_file_line_and_words(tmp_path: Path) -> None:
    report = report_of(tmp_path, lambda head, tail: 0.8, text=TEXT.replace("p one", '"p \\uFFFD one"'))
    root = ElementTree.fromstring(testing.junit(report))
    cases = root.findall(".//testcase")
    assert len(cases) == 7
    assert {(c.get("file"), c.get("line")) for c in cases} >= {("c.yaml", "10"), ("c.yaml", "20")}
    failures = root.findall(".//failure")
    assert len(failures) == 6
    assert failures[0].get("message") == "c.yaml:10: expected a, got abstained"
    assert failures[0].text == "Because of this."


def test_the_command_tells_failures_by_line_and_exits_with_1(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(TEXT, encoding="utf-8")
    done = cai("constitution", "test", file, "--principle", "brief", "--junit", tmp_path / "t.xml", check=1)
    assert f"{file}:20: brief: expected clean, got flagged" in done.stdout
    assert "50%" in done.stdout
    assert ElementTree.parse(tmp_path / "t.xml").getroot().find("testsuite").get("failures") == "1"
    cai("constitution", "test", file, "--principle", "brief", "--at-least", "0.5", check=0)
    told = cai("constitution", "test", file, "--principle", "breif", check=2).stderr
    assert "found no principle 'breif', expected one of kind, brief, bare" in told


def test_the_command_asks_the_configured_judge(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "cache"))
    file = tmp_path / "c.yaml"
    file.write_text(TEXT[: TEXT.index("      - {prompt: p four")], encoding="utf-8")
    judge = ("models.policy.checkpoint=scripted", "engine.kind=scripted", "engine.args=[--judge, 'contains:a kind']")
    done = cai("constitution", "test", file, *judge, "--quiet")
    assert "kind           3       3      100%" in done.stdout
    assert "6 calls made, 0 reused" in done.stdout
    assert "0 calls made, 6 reused" in cai("constitution", "test", file, *judge, "--quiet").stdout
