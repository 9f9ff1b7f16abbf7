"""Worked examples by file: comparisons for the judge (`judge.few_shot`), critiques (`critique.few_shot`).

A file that is no JSON is put before the judge as it stands. JSON is read in the shapes that constitutional AI is
published in:

    ["\\n\\nHuman: …\\n\\nAssistant: …\\n\\nCritiqueRequest: …\\n\\nCritique: …\\n\\nRevisionRequest: …"]     critic
    {"samples": [[{"role": "User", "content": …}, …]]}, {"system_chat": [[…]]}                           critic
    [{"prompt": "\\n\\nHuman: …\\n\\nAssistant:", "corrects": [better], "incorrects": [worse]}]            judge
    [{"prompt": "…{}… (A) [[[…]]] (B) [[[…]]] … So the answer is: (A)"}]                                 judge
    [{"prompt": "…(A) … (B) … Assistant: The answer is:", "corrects": [" (B)"], "incorrects": [" (A)"]}]    judge

A list may also stand as JSON lines.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai import shipped
from cai.errors import UserError
from cai.templates import Turn

_MARK = re.compile(r"(?:\A|\n\n?)(Human|Assistant|CritiqueRequest|Critique|RevisionRequest|Revision):")
_ROLES = {"Human": "user", "Assistant": "assistant", "Critique": "assistant", "Revision": "assistant"}
_SLOT = "{}"
_LETTER = re.compile(r"\(?([AB])\)?")
"""All that is said where the two answers stand in the prompt itself."""
_FOR_CRITIC = "transcripts with Human:, Assistant:, CritiqueRequest: and Critique:, or chats under 'samples'"
_FOR_JUDGE = "plain text, or a list of 'prompt' with 'corrects' and 'incorrects', or of reasoned 'prompt' texts"


def for_judge(name: str | None, *, near: Path | None = None) -> str:
    """Return the text of worked comparisons that is put before a pair; empty without a file. Raises UserError."""
    if name is None:
        return ""
    path, text, shape = _read(name, near)
    if shape is None:
        return text.strip()
    rows = shape if isinstance(shape, list) else []
    if rows and all(_is_comparison(row) for row in rows):
        return "\n\n".join(_comparison(i, row) for i, row in enumerate(rows))
    if rows and all(isinstance(row, dict) and set(row) == {"prompt"} for row in rows):
        return "\n\n".join(f"Example {i + 1}.\n{_reasoned(row['prompt'])}" for i, row in enumerate(rows))
    raise UserError(f"{path}: found no worked comparisons, expected {_FOR_JUDGE}; give such a file as judge.few_shot")


def for_critic(name: str | None, *, near: Path | None = None) -> tuple[Turn, ...]:
    """Return worked critiques as the turns that precede a conversation; none without a file. Raises UserError."""
    if name is None:
        return ()
    path, _, shape = _read(name, near)
    chats: Any = shape
    if isinstance(shape, dict):
        chats = shape.get("samples", shape.get("system_chat"))
    turns = [turn for chat in chats for turn in _chat(chat)] if isinstance(chats, list) else []
    if not turns:
        raise UserError(f"{path}: found no worked critiques, expected {_FOR_CRITIC}; give such a file")
    if [t.role for t in turns] != ["user", "assistant"] * (len(turns) // 2):
        raise UserError(f"{path}: found turns out of turn, expected user and assistant by turns; mend the examples")
    return tuple(turns)


def _read(name: str, near: Path | None) -> tuple[Path, str, Any]:
    """Return the path, its text, and what its JSON holds; None where it is no JSON."""
    path = shipped.find(name, near=near)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); give a file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 at byte {error.start}; save the file as UTF-8") from error
    if not text.strip():
        raise UserError(f"{path}: found an empty file, expected worked examples; write some, or leave few_shot out")
    if not text.lstrip().startswith(("[", "{")):
        return path, text, None
    try:
        return path, text, _json(text)
    except ValueError as error:
        raise UserError(f"{path}: begins like JSON and is none ({error}); mend it, or begin it with words") from error


def _json(text: str) -> Any:
    """Return what JSON holds; JSON lines as a list. Raises ValueError."""
    try:
        return json.loads(text)
    except ValueError:
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < 2 or not all(line.lstrip().startswith("{") for line in lines):
            raise
        return [json.loads(line) for line in lines]


# -- critiques ---------------------------------------------------------------------------------------------------------


def _chat(chat: Any) -> Iterator[Turn]:
    """Yield the turns of one example: a transcript, or a list of messages."""
    if isinstance(chat, str):
        yield from _transcript(chat)
        return
    for message in chat if isinstance(chat, list) else ():
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            role = "assistant" if str(message.get("role")).lower() == "assistant" else "user"
            yield Turn(role, message["content"].strip(), is_example=True)


def _transcript(text: str) -> Iterator[Turn]:
    """Yield the turns of a transcript; a marker that nothing follows, as at the end of the published ones, is none."""
    marks = list(_MARK.finditer(text))
    for i, mark in enumerate(marks):
        said = text[mark.end() : marks[i + 1].start() if i + 1 < len(marks) else len(text)].strip()
        if not said:
            continue
        if mark[1].endswith("Request"):
            kind = mark[1].removesuffix("Request")
            yield Turn("user", f"{kind} request: {said}", is_example=True)
        else:
            yield Turn(_ROLES[mark[1]], said, is_example=True)  # type: ignore[arg-type]


# -- comparisons -------------------------------------------------------------------------------------------------------


def _is_comparison(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("prompt"), str)
        and all(isinstance(row.get(key), list) and row[key] for key in ("corrects", "incorrects"))
    )


def _comparison(index: int, row: dict[str, Any]) -> str:
    """Return one worked comparison. The better answer stands first in every other one, so that no letter is taught."""
    answers = [str(row["corrects"][0]).strip(), str(row["incorrects"][0]).strip()]
    if is_lettered := _LETTER.fullmatch(answers[0]):
        return f"Example {index + 1}.\n{_plain(row['prompt'])}\n\nThe better answer is answer {is_lettered[1]}"
    letter = "AB"[index % 2]
    first, second = answers if letter == "A" else reversed(answers)
    return (
        f"Example {index + 1}.\n{_plain(row['prompt'])}\n\nAnswer A: {first}\n\nAnswer B: {second}\n\n"
        f"The better answer is answer {letter}"
    )


def _reasoned(prompt: str) -> str:
    """Return a comparison with its reasons, in the words of our own prompts."""
    text = _plain(prompt.replace(_SLOT, "Principle: (as given)"))
    text = re.sub(r"\(([AB])\) \[\[\[(.*?)\]\]\]", r"Answer \1: \2", text, flags=re.DOTALL)
    return re.sub(r"(?:Human:\s*)?So the answer is: \(([AB])\)\s*\Z", r"The better answer is answer \1", text)


def _plain(text: str) -> str:
    """Return a transcript without the marker that waits for an answer, and without blank ends."""
    return re.sub(r"\s*(?:Human:|Assistant:(?:\s*The answer is:)?)\s*\Z", "", text).strip()
