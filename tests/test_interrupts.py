"""Ctrl+C on a terminal: once stops the run so that it can go on, twice leaves at once."""

from __future__ import annotations

import os
import pty
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cai.engine.scripted import ScriptedProcess
from cai.store import ledger, schema
from tests import runs

CTRL_C = b"\x03"
SLOW = ["--judge", "coherent", "--latency-ms", "40"]


class Terminal:
    """A run on a terminal of its own: what it shows, and the keys pressed."""

    def __init__(self, *arguments: str | Path, cwd: Path) -> None:
        self._ours, theirs = pty.openpty()
        # A session of its own, whose controlling terminal this one becomes: only then is ^C a signal.
        self.process = subprocess.Popen(
            ["setsid", "-c", *runs.command(*arguments)], stdin=theirs, stdout=theirs, stderr=theirs, cwd=cwd
        )
        os.close(theirs)
        self.shown = ""

    def press(self, key: bytes) -> None:
        os.write(self._ours, key)

    def until(self, words: str) -> None:
        """Read until `words` were shown."""
        while words not in self.shown:
            assert self._read(), f"ended without '{words}':\n{self.shown}"

    def end(self) -> int:
        """Read to the end; return the exit code."""
        while self._read():
            pass
        return self.process.wait()

    def _read(self) -> bool:
        try:
            some = os.read(self._ours, 4096)
        except OSError:  # how Linux says that nobody has the terminal open any more
            return False
        self.shown += some.decode(errors="replace")
        return bool(some)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)


@contextmanager
def terminal(*arguments: str | Path, cwd: Path) -> Iterator[Terminal]:
    opened = Terminal(*arguments, cwd=cwd)
    try:
        yield opened
    finally:
        opened.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_inputs(tmp_path)
    return tmp_path


def test_ctrl_c_stops_the_run_and_the_command_it_prints_ends_it(folder: Path) -> None:
    with ScriptedProcess(judge="coherent") as server:
        whole = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url, name="whole")))
    with ScriptedProcess(judge="coherent", latency_ms=40, count_keys=True, port=_port(server.url)) as slow:
        path = runs.write_config(folder, runs.config(folder, url=slow.url, engine__concurrency=4))
        with terminal("run", path, cwd=folder) as at:
            at.until("walk")
            at.press(CTRL_C)
            at.until("to go on: ")
            assert at.end() == 130
        kept = ledger.head(schema.connect(folder / "runs" / "run" / "store.sqlite", readonly=True))
        told = at.shown.partition("to go on: ")[2].splitlines()[0]
        assert shlex.split(told)[:2] == ["cai", "run"] and "Traceback" not in at.shown
        said = runs.cai(*shlex.split(told)[1:], "--quiet", cwd=folder)
        stats = slow.stats()
    assert "kept" in said.stdout
    assert runs.exports(folder / "runs" / "run") == runs.exports(whole["run"])
    connection = schema.connect(folder / "runs" / "run" / "store.sqlite", readonly=True)
    assert list(ledger.verify(connection, expect=kept.hash)) == []
    assert stats["bodies"]["distinct"] == whole["calls"]["made"], "the first session ended before it began"
    assert stats["bodies"]["repeated"] <= 4


def test_a_second_ctrl_c_leaves_at_once_and_the_run_can_go_on(folder: Path) -> None:
    """The server hangs, and whoever waits for it: only a second Ctrl+C need not wait for anything."""
    with ScriptedProcess(judge="coherent", count_keys=True) as server:
        path = runs.write_config(folder, runs.config(folder, url=server.url))
        with terminal("run", path, "--quiet", cwd=folder) as at:
            while not (folder / "runs" / "run" / "run.lock").exists():
                assert at.process.poll() is None
            at.press(CTRL_C)
            at.press(CTRL_C)
            assert at.end() == 130
        assert runs.run_json(path)["accounting"]["failed"] == 0


def _port(url: str) -> int:
    return int(url.rsplit(":", 1)[1])
