"""verify: whatever was changed, removed or swapped is found and named."""

from __future__ import annotations

import json
import random
import shutil
import sqlite3
from pathlib import Path

import pytest

from cai.audit.verify import verify
from cai.errors import CaiError
from cai.review import Desk
from cai.store import ledger, schema
from tests import runs

TABLES = {
    "texts": "id",
    "calls": "key",
    "records": "id",
    "prompts": "position",
    "walks": "phase || ' ' || prompt_id",
    "ledger": "seq",
}


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run with a review in its ledger."""
    folder = tmp_path_factory.mktemp("verify")
    runs.write_inputs(folder, n_prompts=6)
    said = runs.run_json(runs.write_config(folder, runs.config(folder)))
    with Desk(said["run"]) as desk:
        desk.draw(estimate=6, value=2, author="ann")
        while shown := desk.next("ann"):
            desk.vote("ann", shown.item_id, "left")
    runs.cai("pairs", said["run"])
    connection = sqlite3.connect(Path(said["run"]) / "store.sqlite")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return Path(said["run"])


@pytest.fixture
def copy(sound: Path, tmp_path: Path) -> Path:
    shutil.copytree(sound, tmp_path / "run")
    return tmp_path / "run"


def test_a_run_as_it_was_written_is_sound(sound: Path) -> None:
    found = verify(sound)
    assert found["ok"] and found["sealed"] and found["findings"] == []
    assert "earlier head" in found["limits"].replace("\n", " ")


def columns(connection: sqlite3.Connection, table: str) -> list[str]:
    return [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]


def a_row(connection: sqlite3.Connection, table: str, dice: random.Random) -> str:
    keys = [str(k) for (k,) in connection.execute(f"SELECT {TABLES[table]} FROM {table} ORDER BY 1")]
    return dice.choice(keys)


def change(connection: sqlite3.Connection, table: str, dice: random.Random) -> str:
    """Change one character of one value of one row; return the row's key."""
    while True:
        key, column = a_row(connection, table, dice), dice.choice(columns(connection, table))
        where = f"{TABLES[table]} = ?" if table not in ("prompts", "ledger") else f"CAST({TABLES[table]} AS TEXT) = ?"
        value = connection.execute(f"SELECT {column} FROM {table} WHERE {where}", (key,)).fetchone()[0]
        if value is None:
            continue
        if isinstance(value, str):
            if not value:
                continue
            place = dice.randrange(len(value))
            changed: object = value[:place] + ("x" if value[place] != "x" else "y") + value[place + 1 :]
        else:
            changed = value + 100_000
        try:
            connection.execute(f"UPDATE {table} SET {column} = ? WHERE {where}", (changed, key))
        except sqlite3.IntegrityError:
            continue
        return key


def delete(connection: sqlite3.Connection, table: str, dice: random.Random) -> str:
    """Delete one row; return its key."""
    key = a_row(connection, table, dice)
    where = f"CAST({TABLES[table]} AS TEXT) = ?"
    connection.execute(f"DELETE FROM {table} WHERE {where}", (key,))
    return key


def swap(connection: sqlite3.Connection, table: str, dice: random.Random) -> str:
    """Exchange what two rows hold, all but their keys; return the key of the first."""
    key = "seq" if table == "ledger" else TABLES[table]
    rest = ", ".join(c for c in columns(connection, table) if c != key)
    while True:
        keys = [a_row(connection, table, dice) for _ in range(2)]
        held = [
            connection.execute(f"SELECT {rest} FROM {table} WHERE CAST({key} AS TEXT) = ?", (k,)).fetchone()
            for k in keys
        ]
        if held[0] != held[1]:
            break
    connection.execute(f"DELETE FROM {table} WHERE CAST({key} AS TEXT) IN (?, ?)", keys)
    for k, values in zip(keys, reversed(held), strict=True):
        marks = ", ".join("?" * (1 + len(values)))
        connection.execute(f"INSERT INTO {table} ({key}, {rest}) VALUES ({marks})", (k, *values))
    return keys[0]


@pytest.mark.parametrize("tamper", [change, delete, swap], ids=lambda f: f.__name__)
def test_a_hundred_tamperings_are_all_found_and_named(sound: Path, tmp_path: Path, tamper: object) -> None:
    dice, missed, unnamed = random.Random(f"{tamper.__name__}"), [], []  # type: ignore[attr-defined]
    # Walks that ended well differ in their keys alone: exchanging two changes nothing.
    tables = [t for t in TABLES if not (tamper is swap and t == "walks")]
    folder = tmp_path / "run"
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("logs", "report.html"))
    for n in range(100):
        for side in ("-wal", "-shm"):
            (folder / f"store.sqlite{side}").unlink(missing_ok=True)
        shutil.copyfile(sound / "store.sqlite", folder / "store.sqlite")
        table = tables[n % len(tables)]
        connection = sqlite3.connect(folder / "store.sqlite", isolation_level=None)
        key = tamper(connection, table, dice)  # type: ignore[operator]
        connection.close()
        found = verify(folder)
        if found["ok"]:
            missed.append((table, key))
        elif not any(key in (f["name"], *f["what"].replace(";", " ").split()) for f in found["findings"]):
            unnamed.append((table, key, found["findings"][:3]))
    assert missed == [] and unnamed == []


@pytest.mark.parametrize(("key", "named"), [("head", "head"), ("count", "the ledger"), ("schema", "schema")])
def test_a_changed_head_count_or_version_is_found(copy: Path, key: str, named: str) -> None:
    connection = sqlite3.connect(copy / "store.sqlite", isolation_level=None)
    connection.execute("UPDATE meta SET value = '7' || substr(value, 2) WHERE key = ?", (key,))
    connection.close()
    said = runs.cai("audit", "verify", copy, check=None)
    assert said.returncode in (1, 2) and named in said.stdout + said.stderr


def test_the_last_rows_cut_off_together_with_the_head_are_found_only_by_a_head_kept_elsewhere(copy: Path) -> None:
    connection = schema.connect(copy / "store.sqlite")
    kept = ledger.head(connection)
    rows = connection.execute("SELECT seq, tag, hash FROM ledger ORDER BY seq").fetchall()
    last_sealed = max(seq for seq, tag, _ in rows if tag == "seal")
    cut = rows[-1][0]
    assert cut > last_sealed, "only what came after the seal can be cut off unseen"
    connection.execute("DELETE FROM ledger WHERE seq = ?", (cut,))
    connection.execute("UPDATE meta SET value = ? WHERE key = 'head'", (rows[-2][2],))
    connection.execute("UPDATE meta SET value = ? WHERE key = 'count'", (str(cut),))
    connection.close()
    runs.cai("pairs", copy)
    assert verify(copy)["ok"], "this is what verify says it cannot find"
    found = verify(copy, expect=kept.hash)
    assert not found["ok"] and kept.hash in found["findings"][0]["what"]


def test_a_changed_file_beside_the_store_is_named(copy: Path) -> None:
    pairs = copy / "pairs.jsonl"
    rows = pairs.read_text().splitlines()
    row = json.loads(rows[1])
    row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    rows[1] = json.dumps(row)
    pairs.write_text("\n".join(rows) + "\n")
    text = (copy / "constitution.yaml").read_text()
    (copy / "constitution.yaml").write_text(text.replace("kinder", "ruder"))
    found = {(f["where"], f["name"]) for f in verify(copy)["findings"]}
    assert {("pairs.jsonl", "line 2"), ("constitution.yaml", "file")} <= found


@pytest.mark.parametrize(
    ("file", "before", "after", "named"),
    [
        ("config.yaml", "max_tokens: 600", "max_tokens: 601", ("config.yaml", "file")),
        ("prompts/judgment.jinja", "Principle:", "Principle now:", ("prompts", "judgment.jinja")),
        ("provenance.jsonl", '"chosen_arm":"', '"chosen_arm":"not ', ("provenance.jsonl", "line 1")),
        ("seal.txt", "texts\t", "calls\t", ("seal", "seal.txt")),
        ("manifest.json", '"texts": ', '"texts": 1', ("texts", "count")),
        ("manifest.json", '"done": {', '"undone": {', ("manifest.json", "done")),
    ],
)
def test_one_changed_place_in_any_file_of_a_run_is_named(
    copy: Path, file: str, before: str, after: str, named: tuple[str, str]
) -> None:
    text = (copy / file).read_text()
    assert before in text
    (copy / file).write_text(text.replace(before, after, 1))
    assert named in {(f["where"], f["name"]) for f in verify(copy)["findings"]}


@pytest.mark.parametrize(
    "file",
    ["pairs.jsonl", "provenance.jsonl", "seal.txt", "config.yaml", "constitution.yaml", "prompts/judgment.jinja"],
)
def test_a_removed_file_is_found(copy: Path, file: str) -> None:
    (copy / file).unlink()
    found = verify(copy)["findings"]
    assert any(Path(file).name in " ".join(f.values()) for f in found)


def test_bytes_that_are_no_text_and_a_damaged_page_are_findings_not_exceptions(copy: Path) -> None:
    connection = sqlite3.connect(copy / "store.sqlite", isolation_level=None)
    connection.execute("UPDATE calls SET circumstances = CAST(X'7BFF7D' AS TEXT) WHERE rowid = 3")
    connection.close()
    assert not verify(copy)["ok"]


def test_a_flipped_byte_of_the_file_is_found_or_changes_nothing(sound: Path, tmp_path: Path) -> None:
    def content(path: Path) -> list[str]:
        connection = sqlite3.connect(path)
        return list(connection.iterdump())

    dice, before, n_found = random.Random(5), content(sound / "store.sqlite"), 0
    exported = runs.exports(sound)
    folder = tmp_path / "run"
    shutil.copytree(sound, folder, ignore=shutil.ignore_patterns("logs", "report.html"))
    whole = (sound / "store.sqlite").read_bytes()
    for _ in range(100):
        place = dice.randrange(100, len(whole))
        for side in ("-wal", "-shm"):
            (folder / f"store.sqlite{side}").unlink(missing_ok=True)
        (folder / "store.sqlite").write_bytes(whole[:place] + bytes([whole[place] ^ 0x41]) + whole[place + 1 :])
        try:
            is_sound = verify(folder)["ok"]
        except CaiError:
            is_sound = False
        n_found += not is_sound
        assert not is_sound or content(folder / "store.sqlite") == before, f"byte {place} was changed unseen"
        if runs.cai("pairs", folder, check=None).returncode == 0:
            assert runs.exports(folder) == exported, f"byte {place} changed the pairs unseen"
    assert n_found > 20


def test_the_command_says_what_it_found_and_exits_with_one(copy: Path) -> None:
    assert "sound" in runs.cai("audit", "verify", copy).stdout
    connection = sqlite3.connect(copy / "store.sqlite", isolation_level=None)
    connection.execute("UPDATE texts SET text = text || ' ' WHERE rowid = 1")
    connection.close()
    said = runs.cai("audit", "verify", copy, "--json", check=1)
    assert json.loads(said.stdout)["findings"][0]["where"] == "texts"
