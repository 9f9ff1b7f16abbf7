"""A disk that fills up stops the run with one message; with room again the same command ends it as if nothing was."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cai.engine.scripted import ScriptedProcess
from cai.pipeline import space
from cai.store import ledger, schema
from tests import runs

LITTLE = 420 * 1024
"""Bytes that suffice to begin with, and not for the whole run."""


@pytest.fixture
def server() -> Iterator[ScriptedProcess]:
    with ScriptedProcess(judge="coherent", count_keys=True) as process:
        yield process


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 24 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no small disk can be mounted here ({made.stderr.strip()}); a limit on files is tested below")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def fill(file: Path, *, leaving: int) -> None:
    """Write a file so long that so many bytes are left on its disk."""
    free = os.statvfs(file.parent)
    file.write_bytes(b"x" * (free.f_bavail * free.f_frsize - leaving))


def check_stopped_cleanly(run: Path, said: str) -> None:
    store = run / "store.sqlite"
    assert str(store) in said and "bytes are free and the run may need" in said, said
    assert "the same command again" in said and "Traceback" not in said
    assert schema.faults(store) == []
    connection = schema.connect(store, readonly=True)
    assert list(ledger.verify(connection)) == []
    assert connection.execute("SELECT count(*) FROM calls").fetchone()[0] > 0


def test_a_full_disk_stops_the_run_and_with_room_it_ends_like_an_undisturbed_one(
    tmp_path: Path, disk: Path, server: ScriptedProcess
) -> None:
    runs.write_inputs(tmp_path)
    beside = str(disk / "runs" / "whole")
    whole = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, run__dir=beside)))
    path = runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, run__dir=str(disk / "runs" / "run")))
    ballast = disk / "ballast"
    fill(ballast, leaving=2 * LITTLE)
    check_stopped_cleanly(disk / "runs" / "run", runs.cai("run", path, "--quiet", check=1).stderr)
    ballast.unlink()
    said = runs.run_json(path)
    assert runs.exports(said["run"]) == runs.exports(whole["run"]) and said["accounting"] == whole["accounting"]
    assert 0 < said["calls"]["made"] < whole["calls"]["made"]
    fill(ballast, leaving=0)
    no_room = runs.cai("run", path, f"run.dir={disk / 'runs' / 'other'}", "--quiet", check=1).stderr
    assert "free space" in no_room and str(disk) in no_room


def test_a_file_that_may_not_grow_stops_the_run_and_without_the_limit_it_ends_as_it_would_have(
    tmp_path: Path, server: ScriptedProcess
) -> None:
    runs.write_inputs(tmp_path)
    whole = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, name="whole")))
    path = runs.write_config(tmp_path, runs.config(tmp_path, url=server.url))
    limited = subprocess.run(
        runs.command("run", path, "--quiet"),
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (LITTLE, LITTLE)),
    )
    assert limited.returncode == 1
    check_stopped_cleanly(tmp_path / "runs" / "run", limited.stderr)
    said = runs.run_json(path)
    assert runs.exports(said["run"]) == runs.exports(whole["run"]) and said["accounting"] == whole["accounting"]


def test_too_little_room_is_told_before_anything_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs.write_inputs(tmp_path, n_prompts=4)
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    monkeypatch.setattr(space, "file_system", lambda _: "nfs4")
    notes = runs.run_json(path)["notes"]
    assert any("1,000 bytes are free, and the run may keep " in note for note in notes)
    assert any("network file system (nfs4)" in note for note in notes)


def test_the_reckoning_is_no_less_than_what_a_run_keeps(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=10)
    said = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path)))
    from cai.trail import RunView

    run = RunView(said["run"])
    needed = space.needed(run.config, 10, 0, run.constitution.principles)
    assert needed >= (run.folder / "store.sqlite").stat().st_size


def test_a_file_system_is_that_of_the_innermost_mount(tmp_path: Path) -> None:
    mounts = tmp_path / "mounts"
    inner = tmp_path / "in ner"
    mounts.write_text(f"/dev/sda / ext4 rw 0 0\nhost:/x {str(inner).replace(' ', chr(92) + '040')} nfs4 rw 0 0\n")
    assert space.file_system(inner / "runs", mounts) == "nfs4"
    assert space.file_system(tmp_path / "in", mounts) == "ext4"
    assert space.file_system(tmp_path, tmp_path / "none") is None
