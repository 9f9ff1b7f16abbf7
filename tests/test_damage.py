"""Files cut short or altered: what was whole stays readable, nothing is appended to a torn line, the rest is told."""

from __future__ import annotations

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from cai.errors import StoreError, UserError
from cai.manifest import Manifest
from cai.records import Judgment
from cai.store import ledger, schema
from cai.store.salvage import recover
from cai.store.store import Store
from cai.trail import RunView
from cai.train.data import load_pairs
from tests import runs

LAST = (
    "SELECT c.value, (SELECT count(*) FROM ledger), (SELECT hash FROM ledger ORDER BY seq DESC LIMIT 1) = h.value "
    "FROM meta AS c, meta AS h WHERE c.key = 'count' AND h.key = 'head'"
)
"""The count the store tells, the rows it has, and whether the last one is its head."""
SMALL_PAGE = 512
"""Bytes of a page: a log of small pages has fewer places to cut it, and the same kinds of them."""


def judgment(n: int) -> Judgment:
    return Judgment(
        comparison_id="c", question_id=f"q{n}", order="ab", call_key=None, reply_id=None, verdict="a", p_a=1.0
    )


def unclosed(folder: Path, n: int) -> tuple[Path, list[int]]:
    """Return a store whose process was killed after `n` decisions, and its log's length before and after each."""
    path, copy = folder / "store.sqlite", folder / "killed" / "store.sqlite"
    schema.create(path)
    shrunk = sqlite3.connect(path, isolation_level=None)
    shrunk.execute(f"PRAGMA page_size = {SMALL_PAGE}")
    shrunk.execute("VACUUM")
    shrunk.close()
    store, log = Store(path), folder / "store.sqlite-wal"
    lengths = [0]
    for i in range(n):
        store.put_decisions([judgment(i)])
        store.flush()
        lengths.append(log.stat().st_size)
    copy.parent.mkdir()
    for name in ("store.sqlite", "store.sqlite-wal"):
        shutil.copy(folder / name, copy.parent / name)
    store.close()
    return copy, lengths


def test_a_log_cut_at_any_byte_of_its_last_three_commits_keeps_every_commit_before_the_cut(tmp_path: Path) -> None:
    path, lengths = unclosed(tmp_path, 6)
    log = path.with_name("store.sqlite-wal")
    for cut in range(lengths[-1], lengths[-4] - 1, -1):
        with log.open("r+b") as file:
            file.truncate(cut)
        path.with_name("store.sqlite-shm").unlink(missing_ok=True)
        connection = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
        found = connection.execute(LAST).fetchone()
        connection.close()
        whole = sum(length <= cut for length in lengths[1:])
        assert found == (str(whole), whole, 1), f"cut at byte {cut}"


def test_a_store_with_a_torn_log_goes_on_where_it_broke_off(tmp_path: Path) -> None:
    path, lengths = unclosed(tmp_path, 4)
    log = path.with_name("store.sqlite-wal")
    log.write_bytes(log.read_bytes()[: lengths[-1] - 1])
    store = Store(path)
    store.put_decisions([judgment(i) for i in range(5)])
    store.close()
    connection = schema.connect(path, readonly=True)
    assert ledger.of_comparison(connection, "c") == [judgment(i) for i in range(5)]
    assert list(ledger.verify(connection)) == [] and schema.faults(path) == []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("damage")
    runs.write_inputs(folder, n_prompts=6)
    run = Path(runs.run_json(runs.write_config(folder, runs.config(folder)))["run"])
    connection = sqlite3.connect(run / "store.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return run


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished.parent.parent, tmp_path / "copy")
    return tmp_path / "copy" / "runs" / "run"


def test_pairs_cut_at_any_byte_of_their_last_three_rows_are_read_up_to_there_or_told_by_line(
    finished: Path, tmp_path: Path
) -> None:
    lines = (finished / "pairs.jsonl").read_bytes().splitlines(keepends=True)
    whole, path = b"".join(lines), tmp_path / "pairs.jsonl"
    expected = load_pairs(finished / "pairs.jsonl")
    for cut in range(len(b"".join(lines[:-3])) + 1, len(whole)):
        path.write_bytes(whole[:cut])
        n_ended = whole[:cut].count(b"\n")
        try:
            rows = load_pairs(path)
        except UserError as error:
            assert f"{path}:{n_ended + 1}" in str(error)
        else:
            n_whole = n_ended + (whole[cut : cut + 1] == b"\n")
            assert [r.chosen for r in rows] == [r.chosen for r in expected[:n_whole]]


def test_a_torn_export_is_made_whole_again(run: Path) -> None:
    before = runs.exports(run)
    for name in ("pairs.jsonl", "provenance.jsonl"):
        (run / name).write_bytes((run / name).read_bytes()[:-20])
    runs.cai("pairs", run)
    assert runs.exports(run) == before


def test_a_line_is_not_appended_to_a_torn_one(tmp_path: Path) -> None:
    from cai.manifest import append_line
    from cai.pipeline.checking import last

    path = tmp_path / "checks.jsonl"
    append_line(path, json.dumps({"n": 1}))
    path.write_bytes(path.read_bytes() + b'{"n": 2, "tor')
    assert last(tmp_path) == {"n": 1}
    append_line(path, json.dumps({"n": 3}))
    assert last(tmp_path) == {"n": 3}
    assert path.read_text().splitlines() == ['{"n": 1}', '{"n": 2, "tor', '{"n": 3}']


def go_on(run: Path) -> None:
    """Go on with a copied run by its own config, whose paths name the place it was copied from."""
    folder = run.parent.parent
    runs.cai("run", runs.write_config(folder, runs.config(folder)), "--accept-changes", "--quiet")


def test_recover_brings_back_all_but_what_is_lost_and_the_run_asks_for_that(run: Path) -> None:
    before, path = runs.exports(run), run / "store.sqlite"
    with path.open("r+b") as file:  # a page of replies and a page of decisions
        for page in (pages(path, "calls")[1], pages(path, "ledger")[1]):
            file.seek((page - 1) * 4096)
            file.write(b"\xa5" * 4096)
    said = runs.cai("pairs", run, check=1).stderr
    assert "cai recover" in said and "Traceback" not in said
    told = json.loads(runs.cai("recover", run, "--json", check=3).stdout)
    assert told["lost"]["calls"] and told["lost"]["ledger"] and told["kept"]["calls"]
    assert (Path(told["damaged"]) / "store.sqlite").exists() and schema.faults(path) == []
    go_on(run)
    view = RunView(run)
    assert runs.exports(run) == before and list(ledger.verify(view.connection)) == []
    n_again = view.manifest["sessions"][-1]["made"]
    assert 0 < n_again <= told["lost"]["calls"]


def pages(path: Path, table: str) -> list[int]:
    """Return the leaf pages of a table, found by the texts of its rows."""
    connection = sqlite3.connect(path)
    column = {"calls": "reply", "ledger": "body"}[table]
    texts = [row[0].encode() for row in connection.execute(f"SELECT {column} FROM {table} ORDER BY rowid")]
    connection.close()
    content = path.read_bytes()
    found = [content.find(text) // 4096 + 1 for text in texts if text in content]
    return list(dict.fromkeys(found))


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_recover_of_a_file_cut_short_leaves_a_store_the_run_goes_on_with(run: Path, share: float) -> None:
    before, path = runs.exports(run), run / "store.sqlite"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    assert schema.faults(path)
    recover(run)
    assert Manifest(run)["done"] is None
    go_on(run)
    assert runs.exports(run) == before


def test_recover_leaves_a_sound_store_alone(run: Path) -> None:
    before = (run / "store.sqlite").read_bytes()
    told = recover(run)
    assert told["damaged"] is None and not any(told["lost"].values()) and told["kept"]["calls"] > 50
    assert (run / "store.sqlite").read_bytes() == before
    with pytest.raises(UserError, match="no store.sqlite"):
        recover(run.parent)


def test_an_altered_reply_is_not_used_again(run: Path) -> None:
    connection = sqlite3.connect(run / "store.sqlite")
    connection.execute("UPDATE calls SET reply = replace(reply, 'stop', 'stoq') WHERE kind = 'generate'")
    connection.commit()
    connection.close()
    store = Store(run / "store.sqlite")
    key = store.connection.execute("SELECT key FROM calls WHERE kind = 'generate'").fetchone()[0]
    with pytest.raises(StoreError, match="cai recover"):
        store.replies([key])
    store.close()
    assert recover(run)["lost"]["calls"] > 5
