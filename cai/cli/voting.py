"""Voting in a terminal: one item at a time, one key per vote. Works over SSH, and with keys from a pipe."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cai.cli.terminal import clean, say, say_json
from cai.errors import UserError
from cai.review import Desk, Shown

_VOTES = {"1": "left", "2": "right", "3": "tie", "4": "both_bad", "5": "cannot_judge", "s": "skip"}
_CONFIDENCE = {"7": 1, "8": 2, "9": 3}
_KEYS = (
    "1 first  2 second  3 tie  4 both bad  5 cannot judge  s skip  u undo  7/8/9 unsure/fairly/sure  r reason  "
    "v verdict of the last  q quit"
)


def vote_on_what_waits(desk: Desk, reviewer: str, *, as_json: bool = False) -> int:
    """Put items to a reviewer until none is left or they quit; return 0. With `as_json` say the progress only."""
    if as_json:
        say_json(desk.progress(reviewer))
        return 0
    with _keys() as read:
        last: str | None = None
        while shown := desk.next(reviewer):
            _show(shown)
            last = _one(desk, reviewer, shown, read, last)
            if last == "q":
                break
        else:
            say("nothing is left to review")
    progress = desk.progress(reviewer)
    say(f"{progress['done']} of {progress['total']} done, {progress['skipped']} skipped")
    return 0


def _one(desk: Desk, reviewer: str, shown: Shown, read: Iterator[str], last: str | None) -> str | None:
    """Read keys until the item is voted on, undone or left; return the id of the item last voted on, or `q`."""
    confidence, reason, started = None, "", time.monotonic()
    for key in read:
        if key in _VOTES:
            seconds = round(time.monotonic() - started, 1)
            desk.vote(reviewer, shown.item_id, _VOTES[key], confidence=confidence, reason=reason, duration_s=seconds)
            if shown.is_practice and key != "s":
                _tell_practice(desk.reveal(reviewer, shown.item_id))
            return shown.item_id
        if key in _CONFIDENCE:
            confidence = _CONFIDENCE[key]
            say(f"confidence {confidence} of 3")
        elif key == "r":
            reason = _line("reason: ")
        elif key == "u":
            say("taken back" if desk.undo(reviewer) else "nothing to take back")
            return None
        elif key == "v":
            _tell_verdict(desk, reviewer, last)
        elif key == "q":
            return "q"
        elif key.strip():
            say(_KEYS)
    return "q"


def _show(shown: Shown) -> None:
    width = min(shutil.get_terminal_size((80, 24)).columns, 100)
    part = "practice" if shown.is_practice else "review"
    say(f"\n{'=' * width}\n{part} {shown.done + 1} of {shown.total}")
    for message in shown.messages:
        say(f"\n[{message.role}]")
        say(_wrapped(message.content, width))
    for name, text in (("1", shown.left), ("2", shown.right)):
        say(f"\n--- answer {name} {'-' * (width - 13)}")
        say(_wrapped(text, width))
    say(f"\n{'-' * width}\n{shown.question}" + (f"  [{shown.principle}]" if shown.principle else ""))
    say(_KEYS)


def _wrapped(text: str, width: int) -> str:
    return "\n".join(textwrap.fill(line, width, replace_whitespace=False) for line in clean(text).splitlines())


def _tell_practice(told: dict[str, object]) -> None:
    side = {"left": "answer 1", "right": "answer 2", "tie": "a tie"}[str(told["expected"])]
    say(f"{'as expected' if told['agrees'] else 'expected otherwise'}: {side}. {told['why']}")


def _tell_verdict(desk: Desk, reviewer: str, item_id: str | None) -> None:
    if item_id is None:
        say("the judge's verdict is shown after a vote")
        return
    try:
        told = desk.reveal(reviewer, item_id)
    except UserError as error:
        say(str(error))
        return
    if told.get("withheld") or told.get("practice"):
        say("not told for this item")
        return
    names = {"left": "answer 1", "right": "answer 2", "tie": "a tie", None: "undecided"}
    p = "" if told["p_left"] is None else f" (P(answer 1) {told['p_left']:.2f})"
    say(f"the judge: {names[told['label']]}{p}; answer 1 is a {told['left_is']}, answer 2 a {told['right_is']}")


def _line(question: str) -> str:
    """Read a whole line: typed on a terminal, the next line of a pipe."""
    sys.stdout.write(question)
    sys.stdout.flush()
    if not sys.stdin.isatty():
        return sys.stdin.readline().strip()
    import termios

    here = sys.stdin.fileno()
    raw = termios.tcgetattr(here)
    cooked = list(raw)
    cooked[3] |= termios.ICANON | termios.ECHO
    termios.tcsetattr(here, termios.TCSADRAIN, cooked)
    try:
        return sys.stdin.readline().strip()
    finally:
        termios.tcsetattr(here, termios.TCSADRAIN, raw)


@contextmanager
def _keys() -> Iterator[Iterator[str]]:
    """Yield keys as they are pressed; from a pipe, the first sign of each line. Ctrl-D ends them."""
    if not sys.stdin.isatty():
        yield (line.strip()[:1] for line in iter(sys.stdin.readline, ""))
        return
    import termios
    import tty

    here = sys.stdin.fileno()
    before = termios.tcgetattr(here)
    tty.setcbreak(here)
    try:
        yield iter(lambda: os.read(here, 1).decode(errors="replace").lower(), "\x04")
    finally:
        termios.tcsetattr(here, termios.TCSADRAIN, before)
