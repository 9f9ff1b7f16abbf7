"""The store and its ledger: nothing acknowledged is lost, nothing is doubled, nothing changes unseen."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path

import pytest

from cai import canon
from cai.engine.model import Reply
from cai.errors import StoreError
from cai.records import Judgment, Message, Override, Prompt
from cai.store import ledger, schema
from cai.store import store as store_module
from cai.store.store import Store


def judgment(n: int, comparison: str = "c") -> Judgment:
    return Judgment(
        comparison_id=comparison, question_id=f"q{n}", order="ab", call_key=None, reply_id=None, verdict="a", p_a=1.0
    )


def a_prompt(text: str) -> Prompt:
    return Prompt(messages=(Message(role="user", content=text),))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store.sqlite")


def test_decisions_come_back_in_order(store: Store) -> None:
    made = [judgment(i) for i in range(100)]
    store.put_decisions(made)
    store.close()
    connection = schema.connect(store.path, readonly=True)
    assert ledger.of_comparison(connection, "c") == made
    assert ledger.head(connection).count == 100
    assert list(ledger.verify(connection)) == []


def test_a_decision_put_twice_is_kept_once(store: Store) -> None:
    store.put_decisions([judgment(1), judgment(1)])
    store.flush()
    store.put_decisions([judgment(1)])
    store.close()
    assert ledger.head(schema.connect(store.path, readonly=True)).count == 1


def test_acknowledged_rows_are_on_disk(store: Store) -> None:
    async def put() -> int:
        store.put_decisions([judgment(i) for i in range(10)])
        await store.committed()
        other = sqlite3.connect(store.path)
        return int(other.execute("SELECT count(*) FROM ledger").fetchone()[0])

    assert asyncio.run(put()) == 10
    store.close()


def test_a_review_appends_while_the_run_writes(store: Store) -> None:
    beside = schema.connect(store.path)
    for n in range(50):
        store.put_decisions([judgment(n)])
        ledger.append_now(
            beside,
            [Override(comparison_id=f"r{n}", label="a", author="ann", reason="r", blind=True, time="t")],
        )
    store.close()
    connection = schema.connect(store.path, readonly=True)
    assert ledger.head(connection).count == 100
    assert list(ledger.verify(connection)) == []


def _tampered(path: Path, statement: str) -> list[ledger.Fault]:
    connection = sqlite3.connect(path)
    connection.execute(statement)
    connection.commit()
    connection.close()
    return list(ledger.verify(schema.connect(path, readonly=True)))


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE ledger SET body = replace(body, '\"p_a\":1.0', '\"p_a\":0.9') WHERE seq = 7",
        "DELETE FROM ledger WHERE seq = 7",
        "DELETE FROM ledger WHERE seq = 19",
        "UPDATE ledger SET subject = 'other' WHERE seq = 7",
        "UPDATE ledger SET hash = (SELECT hash FROM ledger WHERE seq = 3) WHERE seq = 7",
        "UPDATE meta SET value = '19' WHERE key = 'count'",
    ],
)
def test_tampering_is_found(store: Store, statement: str) -> None:
    store.put_decisions([judgment(i) for i in range(20)])
    store.close()
    assert _tampered(store.path, statement)


def test_two_rows_swapped_are_found(store: Store) -> None:
    store.put_decisions([judgment(i) for i in range(20)])
    store.close()
    connection = sqlite3.connect(store.path)
    rows = connection.execute("SELECT seq, body FROM ledger WHERE seq IN (5, 6) ORDER BY seq").fetchall()
    for (seq, _), (_, body) in zip(rows, reversed(rows), strict=True):
        connection.execute("UPDATE ledger SET body = ? WHERE seq = ?", (body, seq))
    connection.commit()
    faults = list(ledger.verify(connection))
    assert {f.seq for f in faults} >= {5, 6}


def test_expected_head_of_an_earlier_time_is_still_in_the_chain(store: Store) -> None:
    store.put_decisions([judgment(1)])
    store.flush()
    early = ledger.head(store.connection).hash
    store.put_decisions([judgment(2)])
    store.close()
    connection = schema.connect(store.path, readonly=True)
    assert list(ledger.verify(connection, expect=early)) == []
    assert list(ledger.verify(connection, expect="0" * 63 + "1"))


def test_a_rewritten_prompt_list_forgets_the_old_one(store: Store) -> None:
    store.put_prompt(0, a_prompt("one"), "train")
    store.put_prompt(1, a_prompt("two"), "train")
    store.clear_prompts()
    store.put_prompt(0, a_prompt("three"), "train")
    store.flush()
    store.clear_prompts()
    store.put_prompt(0, a_prompt("two"), "train")
    store.flush()
    assert [p.messages[0].content for p in store.prompts("train")] == ["two"]
    store.close()


def test_many_prompts_are_read_page_by_page(store: Store) -> None:
    for i in range(1203):
        store.put_prompt(i, a_prompt(str(i)), "train" if i % 2 else "held_out")
    store.flush()
    assert [p.messages[0].content for p in store.prompts("train")] == [str(i) for i in range(1, 1203, 2)]
    store.close()


def test_a_disk_that_fills_is_one_clear_error_and_keeps_what_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = schema.connect

    def small(path: Path, *, readonly: bool = False) -> sqlite3.Connection:
        connection = real(path, readonly=readonly)
        connection.execute("PRAGMA max_page_count = 40")
        return connection

    monkeypatch.setattr(schema, "connect", small)
    store = Store(tmp_path / "store.sqlite")
    with pytest.raises(StoreError, match="free space"):
        for n in range(5000):
            store.put_decisions([judgment(n)])
            if n % 50 == 0:
                store.flush()
    monkeypatch.undo()
    with pytest.raises(StoreError):
        store.close()
    connection = schema.connect(store.path, readonly=True)
    assert ledger.head(connection).count >= 1
    assert list(ledger.verify(connection)) == []


def test_a_store_of_a_newer_schema_is_refused(store: Store) -> None:
    store.close()
    connection = sqlite3.connect(store.path)
    connection.execute("UPDATE meta SET value = '999' WHERE key = 'schema'")
    connection.commit()
    with pytest.raises(StoreError, match="found schema 999"):
        schema.connect(store.path)


def test_what_is_not_a_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.sqlite").write_bytes(b"not a database, not at all" * 100)
    with pytest.raises(StoreError, match="not a readable store"):
        schema.connect(tmp_path / "store.sqlite")


def test_reply_ids_are_hashes_of_what_is_kept(store: Store) -> None:
    reply_id = store.put_call("b2:key", {"kind": "score", "model": "m"}, Reply(logprobs={"A": -0.5}, server="one"))
    same = store.put_call("b2:other", {"kind": "score", "model": "m"}, Reply(logprobs={"A": -0.5}, attempts=3))
    store.flush()
    kept = store.replies(["b2:key"])["b2:key"]
    assert kept.reply_id == reply_id == same == canon.id_of_bytes(kept.content.encode())
    assert kept.reply() == Reply(logprobs={"A": -0.5}, server="one")
    store.close()


def test_what_is_put_together_is_committed_together(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_BATCH_ROWS", 1)
    batches: list[set[str]] = []
    commit = store_module._commit

    def noted(connection: sqlite3.Connection, items: list[tuple[str, list[object]]]) -> None:
        batches.append({table for table, _ in items})
        commit(connection, items)

    monkeypatch.setattr(store_module, "_commit", noted)
    prompt = a_prompt("Why?")
    for i in range(20):
        with store.together():
            store.put_record(prompt, prompt_id=prompt.id, phase=f"p{i}")
            store.put_decisions([judgment(i)])
            store.put_walk(f"p{i}", prompt.id, "inputs", "done")
    store.close()
    assert [batch for batch in batches if batch & {"records", "ledger", "walks"}] == [
        {"records", "ledger", "walks"}
    ] * 20


def test_what_fails_on_the_way_puts_nothing(store: Store) -> None:
    with pytest.raises(RuntimeError), store.together():
        store.put_decisions([judgment(1)])
        raise RuntimeError
    store.put_decisions([judgment(2)])
    store.close()
    assert ledger.of_comparison(schema.connect(store.path, readonly=True), "c") == [judgment(2)]
