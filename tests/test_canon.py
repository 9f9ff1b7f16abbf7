"""Canonical JSON and ids: the same content is the same id, and nothing else is."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai import canon

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)


def test_known_ids_never_change() -> None:
    assert canon.content_id("prompt", {"b": 1, "a": [1.5, "é"]}) == "b2:ade52bfb5221966416d18ffa58c5330190873573"
    assert canon.text_id("") == "b2:85a59a2fae92836f10aec096ba62a5d66b195b83"


@given(json_values)
def test_canonical_json_reads_back_equal(value: object) -> None:
    assert json.loads(canon.dumps(value)) == value


@given(st.dictionaries(st.text("abcdef", min_size=1), st.integers(-1000, 1000), min_size=2))
def test_key_order_does_not_change_id(tree: dict[str, int]) -> None:
    turned = dict(reversed(list(tree.items())))
    assert canon.content_id("t", tree) == canon.content_id("t", turned)


@given(json_values)
def test_tag_keeps_equal_contents_apart(value: object) -> None:
    assert canon.content_id("one", value) != canon.content_id("two", value)


def test_lone_surrogate_is_refused() -> None:
    with pytest.raises(TypeError):
        canon.dumps({"text": "\ud800"})


@given(st.lists(st.text("abc") | st.integers(0, 99), min_size=1))
def test_draws_stay_in_the_unit_interval_and_repeat(parts: list[str | int]) -> None:
    drawn = canon.unit_interval(*parts)
    assert 0 <= drawn < 1
    assert drawn == canon.unit_interval(*parts)


def test_draws_are_spread_evenly() -> None:
    drawn = [canon.unit_interval("spread", i) for i in range(10_000)]
    for tenth in range(10):
        share = sum(tenth / 10 <= d < (tenth + 1) / 10 for d in drawn) / len(drawn)
        assert 0.085 < share < 0.115


def test_chain_depends_on_everything() -> None:
    base = canon.chain(canon.GENESIS, "judgment", b"{}")
    assert base != canon.chain(canon.GENESIS, "override", b"{}")
    assert base != canon.chain(canon.GENESIS, "judgment", b"{ }")
    assert base != canon.chain(base, "judgment", b"{}")
