"""Progress: a bar on a terminal, one line every 30 s in a log, and notes at the moment they are made."""

from __future__ import annotations

import sys

import pytest

from cai.cli.terminal import Progress
from cai.pipeline.meter import Meter


class Seconds:
    """Stands for the waiting between two looks: so many of them, at once."""

    def __init__(self, n: int) -> None:
        self.left = n

    def wait(self, _: float) -> bool:
        self.left -= 1
        return self.left < 0


def shown(meter: Meter, *, looks: int, capsys: pytest.CaptureFixture[str]) -> str:
    progress = Progress(meter, quiet=False)
    progress._stop = Seconds(looks)  # type: ignore[assignment]
    progress._show()
    return capsys.readouterr().err


def test_a_log_gets_one_line_every_thirty_seconds_however_much_is_at_work(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    with meter.stage("walk evaluate/before", 120) as held_out, meter.stage("walk sl", 100) as walk:
        held_out.done, walk.done, walk.failed = 30, 50, 2
        lines = shown(meter, looks=65, capsys=capsys).splitlines()
    assert len(lines) == 3  # after 1, 31 and 61 looks of a second
    for words in ("walk sl 50/100", "/s", "ETA ", "2 failed", "walk evaluate/before 30/120", "calls 0+0 reused"):
        assert words in lines[0]
    assert "\x1b" not in "".join(lines) and "\r" not in "".join(lines)


def test_a_terminal_gets_a_bar_with_rate_eta_failures_and_loss(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "200")
    meter = Meter()
    with meter.stage("train rl (dpo, 80 rows)", 20) as stage:
        stage.done, stage.failed, stage.note = 10, 1, "loss 0.6931"
        said = shown(meter, looks=2, capsys=capsys)
    for words in ("train rl (dpo, 80 rows) [############............] 10/20", "/s", "ETA ", "1 failed", "loss 0.6931"):
        assert words in said
    assert said.count("\r") == 2 and "\n" not in said


def test_a_note_is_told_when_it_is_made_and_not_again(capsys: pytest.CaptureFixture[str]) -> None:
    meter = Meter()
    meter.note("the disk \x1b[2Jis nearly full")
    assert shown(meter, looks=1, capsys=capsys) == "note: the disk [2Jis nearly full\n"
    assert shown(meter, looks=1, capsys=capsys) == "" and meter.n_told == 1
