"""`cai watch`: the curves of a training in the terminal, whatever its state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.cli import main
from cai.cli.watch import bars


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
    assert main(["watch", str(tmp_path), "--once"]) == 0
    said = capsys.readouterr().out
    assert "rl: step 4 of 9, about 5.0 s left" in said and "reward" in said and "0.4444" in said
    assert main(["watch", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["ended"] is False and [row["step"] for row in told["curve"]] == [1, 2, 3, 4]
    (out / "checkpoint.json").write_text("{}")
    assert main(["watch", str(tmp_path), "--phase", "rl", "--once"]) == 0
    assert "rl: step 4 of 9, ended" in capsys.readouterr().out


def test_where_nothing_trains_it_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", str(tmp_path)]) == 2
    assert "no training has begun here" in capsys.readouterr().err
    training(tmp_path, 1)
    assert main(["watch", str(tmp_path), "--phase", "sl"]) == 2
    assert "phase 'sl' has no curve; there are curves of ['rl']" in capsys.readouterr().err
