"""`cai watch`: the curves of a training in the terminal, whatever its state."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import pytest

from cai.cli import main
from cai.cli.watch import bars
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
