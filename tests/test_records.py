"""Records: frozen, strict, identified by content with parents inside and time outside."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cai import canon
from cai.records import (
    RECORD_TYPES,
    Comparison,
    Event,
    Judgment,
    Message,
    Override,
    Part,
    Prompt,
    Record,
    Response,
    parse,
)

text = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


def a_response(**changes: object) -> Response:
    fields = {
        "phase": "walk",
        "prompt_id": "b2:p",
        "sample_index": 0,
        "call_key": "b2:c",
        "text": "an answer",
        "finish_reason": "stop",
        "n_tokens": 3,
    }
    return Response(**(fields | changes))


def an_override(**changes: object) -> Override:
    fields = {
        "comparison_id": "b2:c",
        "label": "a",
        "author": "ann",
        "reason": "clearer",
        "blind": True,
        "time": "2026-01-01T00:00:00Z",
    }
    return Override(**(fields | changes))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("phase", "rl"),
        ("prompt_id", "b2:q"),
        ("sample_index", 1),
        ("call_key", "b2:d"),
        ("text", "another"),
        ("finish_reason", "length"),
        ("n_tokens", 4),
    ],
)
def test_every_field_of_a_response_is_part_of_its_id(field: str, value: object) -> None:
    assert a_response(**{field: value}).id != a_response().id


@given(text, text)
def test_different_conversations_have_different_ids(one: str, two: str) -> None:
    ids = [Prompt(messages=(Message(role="user", content=t),)).id for t in (one, two)]
    assert (ids[0] == ids[1]) == (one == two)


def test_where_a_prompt_came_from_does_not_change_its_id() -> None:
    messages = (Message(role="user", content="hello"),)
    assert Prompt(messages=messages).id == Prompt(messages=messages, domain="everyday", source_id="x-1").id


def test_time_does_not_change_an_overrides_id_and_its_predecessor_does() -> None:
    assert an_override().id == an_override(time="2027-01-01T00:00:00Z").id
    assert an_override().id != an_override(supersedes=an_override().id).id


def test_records_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        a_response().text = "changed"  # type: ignore[misc]
    with pytest.raises(ValidationError):
        a_response(extra=1)


@pytest.mark.parametrize("p_a", [-0.1, 1.1, float("nan"), float("inf")])
def test_a_probability_outside_zero_to_one_is_refused(p_a: float) -> None:
    with pytest.raises(ValidationError):
        Judgment(comparison_id="c", question_id="q", order="ab", call_key=None, reply_id=None, verdict="a", p_a=p_a)


@given(text, st.integers(0, 99))
def test_what_is_kept_reads_back_with_the_same_id(words: str, index: int) -> None:
    for record in (a_response(text=words, sample_index=index), an_override(reason=words)):
        assert parse(record.tag, record.body()) == record
        assert parse(record.tag, record.body()).id == record.id


def test_every_kind_has_its_own_tag() -> None:
    assert all(RECORD_TYPES[tag].tag == tag for tag in RECORD_TYPES)
    kinds = {c for parent in (Record, Event) for c in parent.__subclasses__()} - {Event}
    assert kinds == set(RECORD_TYPES.values())


def test_swapping_the_arms_is_another_comparison() -> None:
    one = Comparison(phase="walk", prompt_id="p", a_id="x", b_id="y", source="samples")
    assert one.id != one.model_copy(update={"a_id": "y", "b_id": "x"}).id


@given(text, st.floats(0, 1), st.lists(text, max_size=3))
def test_a_body_is_what_pydantic_would_write_canonically(content: str, p_a: float, votes: list[str]) -> None:
    part = Part(name="sample 1", call_key=None, reply_id=None, value=p_a)
    about = {"comparison_id": "c", "question_id": "q", "order": "ab", "call_key": None, "reply_id": None}
    for record in (
        Prompt(messages=(Message(role="system", content=""), Message(role="user", content=content))),
        an_override(reason=content, votes=tuple(votes)),
        Judgment(**about, verdict="a", p_a=p_a, parts=(part, part)),
    ):
        assert record.body() == canon.dumps(record.model_dump(mode="json"))
