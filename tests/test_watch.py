"""`cai watch`: the curves of a training in the terminal, whatever its state."""

from __future__ import annotations

import fcntl
import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path
from subprocess import PIPE

import pytest

from cai import manifest
from cai.cli import main
from cai.cli.watch import bars
from cai.manifest import is_locked
from cai.train.checkpoint import Folder


def training(folder: Path, n: int) -> Path:
    out = folder / "checkpoints" / "rl"
    out.mkdir(parents=True)
    rows = [{"step": i, "steps": 9, "loss": 1 / (i + 1), "reward": i / 9, "eta_s": 9.0 - i} for i in range(1, n + 1)]
    (out / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return out


def test_a_course_is_drawn_from_its_lowest_to_its_highest() -> None:
    assert bars([0.0, 1.0, 2.0]) == "▁▅█" and bars([3.0, 3.0]) == "▁▁" and bars([]) == ""
    assert len(bars([float(i) for i in range(100)])) == 32


def test_a_training_is_shown_as_it_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = training(tmp_path, 4)
    with Folder(out, {}).owned():
        assert main(["watch", str(tmp_path), "--once"]) == 0
        said = capsys.readouterr().out
        assert "rl: step 4 of 9, about 5.0 s left" in said and "reward" in said and "0.4444" in said
        assert main(["watch", str(out), "--json"]) == 0
        told = json.loads(capsys.readouterr().out)
    assert told["ended"] is False and told["running"] is True
    assert [row["step"] for row in told["curve"]] == [1, 2, 3, 4]
    assert main(["watch", str(tmp_path), "--once"]) == 0
    assert "rl: step 4 of 9, stopped" in capsys.readouterr().out
    (out / "checkpoint.json").write_text("{}")
    assert main(["watch", str(tmp_path), "--phase", "rl", "--once"]) == 0
    assert "rl: step 4 of 9, ended" in capsys.readouterr().out


@pytest.mark.parametrize("finishes", [True, False])
def test_watching_ends_with_the_training_whatever_became_of_it(
    finishes: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, looks = training(tmp_path, 4), []
    with ExitStack() as working:
        working.enter_context(Folder(out, {}).owned())

        def goes_on(_: float) -> None:
            looks.append(None)
            if finishes:
                (out / "checkpoint.json").write_text("{}")
            working.close()

        monkeypatch.setattr("time.sleep", goes_on)
        monkeypatch.setattr("rich.console.Console.is_terminal", True)
        assert main(["watch", str(tmp_path)]) == (0 if finishes else 1)
    said = capsys.readouterr().out
    assert "about 5.0 s left" in said and ("ended" if finishes else "stopped") in said
    assert len(looks) == (1 if finishes else 10)


def test_where_nothing_trains_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "no training has begun here" in capsys.readouterr().err
    training(tmp_path, 1)
    assert main(["watch", str(tmp_path), "--phase", "sl"]) == 2
    assert "phase 'sl' has no curve; there are curves of ['rl']" in capsys.readouterr().err


@pytest.fixture
def unlisted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The list of a system that shows no lock."""
    listed = tmp_path / "locks"
    listed.write_text("")
    monkeypatch.setattr(manifest, "LOCKS", listed)
    return listed


def test_a_lock_that_a_file_server_knows_of_is_seen_and_left_alone(tmp_path: Path, unlisted: Path) -> None:
    """An NFS server takes the lock on a whole file as one on its bytes, which other machines can ask for."""
    path = tmp_path / "run.lock"
    held = "import fcntl, sys; file = open(sys.argv[1], 'w'); fcntl.lockf(file, fcntl.LOCK_EX); print('held'); input()"
    with subprocess.Popen([sys.executable, "-c", held, str(path)], stdin=PIPE, stdout=PIPE, text=True) as owner:
        assert owner.stdout and owner.stdout.readline() == "held\n"
        assert is_locked(path)
        with open(path, "w") as ours, pytest.raises(BlockingIOError):
            fcntl.lockf(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        owner.communicate("\n")
    assert not is_locked(path) and not is_locked(tmp_path / "none.lock")


def test_a_lock_is_found_in_the_list_by_the_device_of_its_mount(
    tmp_path: Path, unlisted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On btrfs the list names a device that is not the file's own."""
    path = tmp_path / "run.lock"
    path.write_text("")
    monkeypatch.setattr(manifest, "_mounted_from", lambda file: [(0, 42)])
    unlisted.write_text(f"1: FLOCK  ADVISORY  WRITE 77 00:2a:{path.stat().st_ino} 0 EOF\n")
    assert is_locked(path)
    unlisted.write_text(f"1: -> FLOCK  ADVISORY  WRITE 77 00:2a:{path.stat().st_ino} 0 EOF\n")
    assert not is_locked(path), "that one waits for it"


def test_the_mount_table_names_the_device_of_an_ordinary_file(tmp_path: Path) -> None:
    with open(tmp_path / "run.lock", "wb") as file:
        assert len(list(manifest._mounted_from(file))) == 1


@pytest.mark.parametrize(("eta_s", "n_idle"), [(5.0, 10), (100.0, 60)])
def test_a_training_whose_lock_nobody_sees_is_watched_while_its_curve_grows(
    eta_s: float, n_idle: int, tmp_path: Path, unlisted: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """And for as long as three of its steps take after it has grown for the last time, ten looks at least."""
    out, looks, said = training(tmp_path, 3), [], []

    def goes_on(_: float) -> None:
        looks.append(None)
        if len(looks) == 8:
            with (out / "curve.jsonl").open("a") as curve:
                curve.write(json.dumps({"step": 4, "steps": 9, "loss": 0.1, "eta_s": eta_s}) + "\n")

    monkeypatch.setattr("time.sleep", goes_on)
    monkeypatch.setattr("rich.console.Console.is_terminal", True)
    monkeypatch.setattr("rich.live.Live.update", lambda self, view, **_: said.append(str(view.title)))
    with Folder(out, {}).owned():
        assert main(["watch", str(tmp_path)]) == 1
    assert len(looks) == 8 + n_idle
    assert all(" left" in title for title in said[7:-1])
    assert "stopped, or out of sight" in said[0] and "stopped, or out of sight" in said[-1]
