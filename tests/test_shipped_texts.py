"""The constitutions and prompts that come with `cai` keep their own promises."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from cai import checks, constitution, promptset, shipped
from cai.config import PromptSource

CONSTITUTIONS = ("harmless", "helpful-honest", "plain-language", "quickstart")
SETS = ("everyday", "tempting")


def principles(name: str) -> tuple[constitution.Principle, ...]:
    return constitution.load(str(shipped.root() / "constitutions" / f"{name}.yaml")).principles


def answers(test: constitution.PairTest | constitution.ResponseTest) -> tuple[str, ...]:
    return (test.response,) if test.expect in ("flagged", "clean") else (test.a, test.b)


def rows(name: str) -> list[dict]:
    text = (shipped.root() / "prompts" / "sets" / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_every_principle_has_tests_for_each_verdict(name: str) -> None:
    for principle in principles(name):
        expected = Counter(test.expect for test in principle.tests)
        assert len(principle.tests) >= 4, principle.id
        verdicts = {"a", "b", "flagged", "clean"} if principle.revision else {"a", "b"}
        assert verdicts <= set(expected), principle.id


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_checks_decide_their_own_tests_as_expected(name: str) -> None:
    for principle in principles(name):
        for test in principle.tests if principle.check else ():
            if test.expect in ("flagged", "clean"):
                passed = checks.run(principle.check, test.response).passed
                assert passed == (test.expect == "clean"), (principle.id, test.prompt)
            else:
                p_a = checks.compare(principle.check, test.a, test.b)
                assert p_a == {"a": 1.0, "tie": 0.5, "b": 0.0}[test.expect], (principle.id, test.prompt)


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_every_rule_of_a_check_is_broken_by_one_of_its_tests(name: str) -> None:
    for principle in principles(name):
        if principle.check:
            texts = [text for test in principle.tests for text in answers(test)]
            failures = [failure for text in texts for failure in checks.run(principle.check, text).failures]
            broken = {(failure.rule, failure.expected) for failure in failures}
            rules = [value for _, value in principle.check if value]
            n_rules = sum(len(value) if isinstance(value, tuple) else 1 for value in rules)
            assert len(broken) == n_rules, principle.id


@pytest.mark.parametrize("name", CONSTITUTIONS)
def test_texts_have_the_form_the_prompts_rely_on(name: str) -> None:
    for principle in principles(name):
        assert principle.critique is None or "nothing to fix" in principle.critique
        assert principle.revision is None or "nswer" in principle.revision
        if principle.compare is not None:
            assert re.search(r"Which of the two answers, A or B, [^.]*\?$", principle.compare), principle.id


def test_principles_name_only_domains_that_have_prompts() -> None:
    for name in CONSTITUTIONS:
        for principle in principles(name):
            assert set(principle.domains or ()) <= set(SETS), principle.id


def test_prompt_ids_are_unique_and_tell_their_set() -> None:
    for name in SETS:
        ids = [row["id"] for row in rows(name)]
        assert len(set(ids)) == len(ids)
        assert all(re.fullmatch(rf"{name}-\d{{3}}", each) for each in ids)
        assert {row["domain"] for row in rows(name)} == {name}


def test_shipped_prompts_hold_no_duplicates_near_or_exact() -> None:
    read = promptset.load([PromptSource(path=f"prompts/sets/{name}.jsonl") for name in SETS])
    assert read.n_duplicates == 0
    for i, prompt in enumerate(read.prompts):
        assert not promptset.overlaps([prompt], read.prompts[:i])


def test_the_default_split_leaves_enough_on_either_side() -> None:
    read = promptset.load([PromptSource(path=f"prompts/sets/{name}.jsonl") for name in SETS])
    train, held_out = promptset.split(read.prompts, 0.3, salt="0")
    assert len(held_out) >= 120 and len(train) >= 250
    assert {p.domain for p in held_out} == set(SETS)
