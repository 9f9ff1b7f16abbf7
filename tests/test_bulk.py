"""What is done for many at once is what is done for each."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai import canon
from cai.engine.model import ScoreGroup, key_of, request_key
from cai.engine.scoring import Roads
from cai.records import Judgment
from cai.store import bulk, ledger, schema
from cai.templates import Turn

TURN = st.builds(Turn, st.sampled_from(("system", "user", "assistant")), st.text(max_size=20))


@given(
    head=st.lists(TURN, max_size=3),
    tails=st.lists(st.lists(TURN, min_size=1, max_size=2).map(tuple), max_size=4),
    model=st.text(max_size=20),
    mass=st.booleans(),
)
def test_requests_are_their_descriptions(
    head: list[Turn], tails: list[tuple[Turn, ...]], model: str, mass: bool
) -> None:
    group = ScoreGroup(tuple(head), tuple(tails), ("A", "B"), mass)
    requests = group.requests(model)
    descriptions = [group.describe(model, i) for i in range(len(tails))]
    assert requests == [canon.dumps(d) for d in descriptions]
    assert [key_of(r) for r in requests] == [request_key(d) for d in descriptions]


def test_a_reply_without_the_mass_is_another_request() -> None:
    tail = (Turn("user", "?"), Turn("assistant", "It is"))
    keys = {key_of(ScoreGroup((), (tail,), ("A", "B"), mass).requests("m")[0]) for mass in (True, False)}
    assert len(keys) == 2


@given(st.dictionaries(st.text(), st.integers() | st.text() | st.none()))
def test_id_of_json_is_content_id(content: dict[str, object]) -> None:
    try:
        body = canon.dumps(content)
    except TypeError:  # an integer beyond 64 bits
        return
    assert canon.id_of_json("call", body) == canon.content_id("call", content)


@given(st.lists(st.binary(max_size=9)))
def test_id_of_parts_is_the_id_of_the_whole(parts: list[bytes]) -> None:
    assert canon.id_of_parts(parts) == canon.id_of_bytes(b"".join(parts))


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, sqlite3.Connection]]:
    paths = [tmp_path / name for name in ("one.sqlite", "two.sqlite")]
    for path in paths:
        schema.create(path)
    one, two = (schema.connect(path) for path in paths)
    yield one, two
    one.close()
    two.close()


def _entry(n: int) -> ledger.Entry:
    made = Judgment(
        comparison_id=f"c{n % 7}", question_id=f"q{n}", order="ab", call_key=None, reply_id=None, verdict="a", p_a=0.9
    )
    return ledger.entry(made)


@pytest.mark.parametrize("sizes", [(1,), (5, 300, 16, 17), (700, 700)])
def test_a_batch_makes_the_chain_that_single_rows_make(
    stores: tuple[sqlite3.Connection, sqlite3.Connection], sizes: tuple[int, ...]
) -> None:
    one, two = stores
    start = 0
    for size in sizes:
        # Every batch begins with rows that are there already, and holds one of its own twice.
        entries = [_entry(n) for n in [*range(max(0, start - 3), start + size), start]]
        start += size
        ledger.append(one, entries)
        ledger.append_batch(two, entries)
    assert ledger.head(one) == ledger.head(two) and ledger.head(one).count == start
    rows = [c.execute("SELECT * FROM ledger ORDER BY seq").fetchall() for c in stores]
    assert rows[0] == rows[1]
    assert list(ledger.verify(two)) == []


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 255, 256, 257, 600])
def test_bulk_inserts_every_row_once_in_order(n: int) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (a INTEGER, b TEXT)")
    rows = [(i, f"row {i}") for i in range(n)]
    bulk.insert(connection, "INSERT INTO t", rows)
    assert connection.execute("SELECT a, b FROM t ORDER BY rowid").fetchall() == rows
    connection.close()


def test_roads_are_tried_in_turn_and_the_quickest_is_taken() -> None:
    roads = Roads(("slow", "quick"))
    seconds = {"slow": 2.0, "quick": 1.0}
    tried = []
    for _ in range(2 * Roads.TRIALS):
        road = roads.next()
        tried.append(road)
        roads.note(road, seconds[road])
    assert tried.count("slow") == tried.count("quick") == Roads.TRIALS
    assert {roads.next() for _ in range(5)} == {"quick"}
    assert roads.as_dict() == {"taken": "quick", "ms_per_prompt": {"slow": 2000.0, "quick": 1000.0}}


def test_a_road_that_is_not_offered_is_left() -> None:
    roads = Roads(("shares", "completions"))
    roads.drop("shares")
    roads.note("shares", 0.001)  # an answer may come after another was refused
    assert {roads.next() for _ in range(10)} == {"completions"}
    assert "shares" not in roads.as_dict().get("ms_per_prompt", {})
