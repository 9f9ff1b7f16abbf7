"""Voting in a terminal: one key a vote on a real terminal, a line a key from a pipe, and nothing that steers it."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

from cai.review import Desk
from tests import runs
from tests.report_fixture import make_run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hostile = "\x1b]52;c;aGk=\x07\x1b[2J\x9b31m\u202e[/foo] "
    folder = make_run(tmp_path / "run", n_train=12, n_held_out=2, rewrite=lambda t: hostile + t)
    Desk(folder).draw(estimate=8, value=4, author="ann")
    return folder


def piped(folder: Path, keys: str, reviewer: str = "ann") -> str:
    done = subprocess.run(
        runs.command("review", "next", folder, "--as", reviewer), input=keys, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_keys_from_a_pipe_vote_undo_and_give_reasons(folder: Path) -> None:
    said = piped(folder, "9\nr\nbecause it is short\n1\n3\nu\n4\n2\ns\nq\n")
    votes = list(Desk(folder).book.standing("ann"))
    assert [v.choice for v in votes][1:] == ["both_bad", votes[2].choice, "skip"]
    assert (votes[0].confidence, votes[0].reason) == (3, "because it is short") and votes[0].choice in ("a", "b")
    assert votes[0].duration_s is not None and "taken back" in said and "3 of 13 done, 1 skipped" in said


def test_nothing_in_an_answer_reaches_the_terminal_as_a_command(folder: Path) -> None:
    said = piped(folder, "1\nv\nq\n")
    assert not [c for c in said if ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 or c == "\u202e"]
    assert "[/foo]" in said


def test_the_verdict_is_not_shown_before_a_vote_and_then_is(folder: Path) -> None:
    assert "the judge:" not in piped(folder, "v\nq\n")
    assert "the judge:" in piped(folder, "1\nv\n1\nv\n1\nv\nq\n")


def test_unknown_keys_explain_and_the_end_of_input_ends(folder: Path) -> None:
    assert piped(folder, "x\n").count("1 first  2 second") == 2
    piped(folder, "1\n" * 40)
    assert "nothing is left to review" in piped(folder, "")


def test_the_second_reviewer_starts_afresh(folder: Path) -> None:
    piped(folder, "1\n1\nq\n")
    assert "review 1 of 13" in piped(folder, "q\n", reviewer="bob")


def test_one_key_is_enough_on_a_terminal(folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        runs.command("review", "next", folder, "--as", "ann"), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    said = read_until(ours, "q quit", 1)
    os.write(ours, b"3")
    said += read_until(ours, "q quit", 2 - said.count("q quit"))
    os.write(ours, b"q")
    said += read_until(ours, "1 of 13 done", 1)
    assert process.wait(timeout=60) == 0 and "review 2 of 13" in said
    os.close(ours)
    assert [v.choice for v in Desk(folder).book.votes] == ["tie"]


def read_until(terminal: int, text: str, times: int) -> str:
    """Read what the program shows until `text` was there so many times."""
    said = ""
    while said.count(text) < times:
        said += os.read(terminal, 4096).decode(errors="replace")
    return said
