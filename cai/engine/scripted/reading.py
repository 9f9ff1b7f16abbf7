"""What a prompt asks for, read from the markers that `cai`'s templates put into it.

Everything works on UTF-8 bytes, because prompts arrive as byte tokens and are judged by the ten thousand.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from cai.engine.bytetokens import TURN_CLOSE, TURN_OPEN
from cai.templates import FENCE_LENGTH

_MARKER_CHARS = len("<<answer A >>") + FENCE_LENGTH
_END_B = b"<<end answer B "
_PRINCIPLE = b"Principle:"
_FENCED = re.compile(
    rb"<<(answer A|answer B|answer|conversation) ([a-z]{%d})>>\n?(.*?)\n?<<end \1 \2>>" % FENCE_LENGTH, re.DOTALL
)
_USER_TURN = f"{TURN_OPEN}user\n".encode()
_CLOSE = TURN_CLOSE.encode()

Task = Literal["respond", "critique", "revise", "compare"]


class Comparison(NamedTuple):
    """Two answers in the order shown, and the principle they are compared by."""

    a: bytes
    b: bytes
    principle: bytes
    """The text after `Principle:`, up to the end of its line."""


def read_comparison(text: bytes) -> Comparison | None:
    """Return the last comparison in `text`, or None where two fenced answers or the principle are missing.

    The closing marker of answer B names the fence. Whatever an answer says lies before that marker, so markers that
    a model wrote into its answer are not taken for ours.
    """
    end_b = text.rfind(_END_B)
    if end_b < 0:
        return None
    fence = text[end_b + len(_END_B) : end_b + len(_END_B) + FENCE_LENGTH]
    end_a = text.rfind(b"<<end answer A %b>>" % fence)
    start_b = text.rfind(b"<<answer B %b>>" % fence, 0, end_b)
    start_a = text.rfind(b"<<answer A %b>>" % fence, 0, end_a) if end_a >= 0 else -1
    if start_a < 0 or start_b < 0:
        return None
    principle = _principle(text, min(start_a, start_b), max(end_a, end_b), fence)
    if principle is None:
        return None
    a = text[start_a + _MARKER_CHARS : end_a].strip()
    return Comparison(a, text[start_b + _MARKER_CHARS : end_b].strip(), principle)


def _principle(text: bytes, pair_from: int, pair_to: int, fence: bytes) -> bytes | None:
    """Return the principle's line: after the pair, or else (principle first) before the conversation it judges."""
    at = text.find(b"\n" + _PRINCIPLE, pair_to) + 1
    if not at:
        conversation = text.rfind(b"<<conversation " + fence, 0, pair_from)
        at = text.rfind(b"\n" + _PRINCIPLE, 0, conversation if conversation >= 0 else pair_from) + 1
        if not at and not text.startswith(_PRINCIPLE):
            return None
    end = text.find(b"\n", at)
    line = text[at + len(_PRINCIPLE) : end if end >= 0 else len(text)]
    return line.partition(_CLOSE)[0].strip()


def task_of(text: bytes) -> Task:
    """Return which step of the walk the prompt belongs to, by the marker line of its last user turn."""
    last_turn = b"\n" + without_fenced(text).rpartition(_USER_TURN)[2]
    if b"\nRevision request:" in last_turn:
        return "revise"
    if b"\nCritique request:" in last_turn:
        return "critique"
    return "compare" if read_comparison(text) else "respond"


def without_fenced(text: bytes) -> bytes:
    """Return `text` without its fenced blocks: what we wrote, not what a model or a user wrote."""
    return _FENCED.sub(b"", text)


def fenced_answer(text: bytes) -> bytes | None:
    """Return the last single answer between `<<answer FENCE>>` markers, or None."""
    answers = [m[3] for m in _FENCED.finditer(text) if m[1] == b"answer"]
    return answers[-1].strip() if answers else None


def offered(text: bytes) -> tuple[int, ...]:
    """Return the first bytes of what is offered on a single answer: grades on a principle, yes and no on a question."""
    _, end, after = text.rpartition(b"<<end answer ")
    if not end:
        return ()
    return tuple(b"123456789") if b"\n" + _PRINCIPLE in after else tuple(b"YN") if b"\nQuestion:" in after else ()


def last_user_turn(text: bytes) -> bytes:
    """Return the last user message of a rendered conversation; all of `text` where it has no turns."""
    return text.rpartition(_USER_TURN)[2].partition(_CLOSE)[0]
