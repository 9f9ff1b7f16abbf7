"""One row of a prompt file, strictly read: a Prompt, or a Malformed that says what was found and expected.

parse_json     a line of JSONL                 → a row
from_row       `prompt` or `messages`          → Prompt
from_columns   a row of a Hugging Face dataset → Prompt
from_hh        an hh-rlhf transcript           → Prompt
"""

from __future__ import annotations

import json
import re
from typing import Any, get_args

from cai.records import Message, Prompt, Role
from cai.yamlfile import quoted
from cai.yamlfile.shapes import nearest

GENERAL = "general"
"""The domain of prompts that nobody gave one."""
KEYS = ("id", "domain", "prompt", "messages", "meta")
"""What a JSONL row may hold. `meta` is the author's own: an object that is read by nobody."""
HH_KEYS = ("id", "domain", "chosen", "rejected", "meta")
"""What an hh-rlhf row may hold; the prompt is taken from `chosen`."""
_MESSAGE_KEYS = ("role", "content")
_TURN = re.compile(r"\n\n(Human|Assistant):(?: |(?=\n)|$)")
"""A speaker's marker in a transcript. `Human:` anywhere else is something that was said."""


class Malformed(ValueError):
    """A row that cannot become a prompt: what was found, and what was expected."""


class Poison(Malformed):
    """A row in order but for its text, which no store, terminal or model server can take as it is."""


def parse_json(line: bytes) -> dict[str, Any]:
    """Return the object that a line of JSONL holds. Raises Malformed, also for a key that stands there twice."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        found = f"byte 0x{line[error.start]:02x} at byte {error.start + 1} of the line"
        raise Poison(f"{found}, expected UTF-8; save the file as UTF-8") from error
    try:
        row = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        found = f"{quoted(text.strip())} is not JSON ({error.msg.lower()} at character {error.pos + 1})"
        raise Malformed(f"{found}, expected one JSON object a line") from error
    except Malformed:
        raise
    except (ValueError, RecursionError) as error:
        raise Malformed("JSON nested too deeply or with a number too long, expected one plain object a line") from error
    return _an_object(row, "a JSON object a line")


def from_row(row: dict[str, Any], domain: str | None = None) -> Prompt:
    """Return the prompt of a row with `prompt` or `messages`; `domain` stands in where the row names none."""
    _known(row, KEYS)
    if not isinstance(row.get("meta", {}), dict):
        raise Malformed(f"found {_kind(row['meta'])} in 'meta', expected an object")
    if ("prompt" in row) == ("messages" in row):
        found = "both 'prompt' and 'messages'" if "prompt" in row else "neither 'prompt' nor 'messages'"
        raise Malformed(f"found {found}, expected exactly one of them")
    if "prompt" in row:
        return _prompt(row, domain, (Message(role="user", content=_text(row["prompt"], "prompt")),))
    return _prompt(row, domain, _conversation(row["messages"], "messages"))


def from_columns(row: dict[str, Any], domain: str | None = None) -> Prompt:
    """Return the prompt of a dataset's row. Further columns are passed over; `prompt` may hold messages, as TRL's do.

    `prompt` goes before `messages`: where both stand, the latter is the whole exchange with its answer.
    """
    held = {key: row[key] for key in KEYS[:-1] if row.get(key) is not None}
    if isinstance(held.get("prompt"), list):
        held["messages"] = held.pop("prompt")
    elif "prompt" in held:
        held.pop("messages", None)
    if isinstance(held.get("messages"), list):
        held["messages"] = [_without_nulls(message) for message in held["messages"]]
    return from_row(held, domain)


def from_hh(row: dict[str, Any], domain: str | None = None) -> Prompt:
    """Return the conversation of an hh-rlhf row up to the last thing the human said; all its turns are kept."""
    _known(row, HH_KEYS)
    if "chosen" not in row:
        raise Malformed(f"found no 'chosen', expected a transcript there; keys found: {', '.join(row) or 'none'}")
    return _prompt(row, domain, _transcript(_text(row["chosen"], "chosen")))


def _transcript(text: str) -> tuple[Message, ...]:
    """Return a transcript's turns up to the last of the human."""
    turns = hh_turns(text, "chosen")
    if turns[-1][0] == "assistant":
        turns.pop()
    if not turns[-1][1]:
        raise Malformed("found a last Human turn without text in 'chosen', expected what the human asked")
    return tuple(Message(role=role, content=said) for role, said in turns)


def hh_turns(text: str, where: str) -> list[tuple[Role, str]]:
    """Return a transcript's turns as (role, text). Neighbouring turns of one speaker are one. Raises Malformed."""
    before, *parts = _TURN.split("\n\n" + text.lstrip("\n"))
    if before or parts[:1] != ["Human"]:
        raise Malformed(f"found {quoted(text.strip())} in '{where}', expected a transcript that begins '\\n\\nHuman: '")
    turns: list[tuple[Role, str]] = []
    for speaker, said in zip(parts[::2], parts[1::2], strict=True):
        role: Role = "user" if speaker == "Human" else "assistant"
        if turns and turns[-1][0] == role:
            said = f"{turns.pop()[1]}\n\n{said.strip()}"
        turns.append((role, said.strip()))
    return turns


def _conversation(found: Any, where: str) -> tuple[Message, ...]:
    if not isinstance(found, list) or not found:
        raise Malformed(f"found {_kind(found)} in '{where}', expected a list of messages")
    messages = tuple(_message(message, f"{where}.{i}", first=i == 0) for i, message in enumerate(found))
    if messages[-1].role != "user":
        raise Malformed(f"found role '{messages[-1].role}' in the last message of '{where}', expected 'user'")
    return messages


def _message(found: Any, where: str, *, first: bool) -> Message:
    row = _an_object(found, f"an object with role and content in '{where}'")
    _known(row, _MESSAGE_KEYS, f" in '{where}'")
    if missing := [key for key in _MESSAGE_KEYS if key not in row]:
        raise Malformed(f"found no '{missing[0]}' in '{where}', expected role and content")
    role, roles = row["role"], get_args(Role)
    if role not in roles:
        raise Malformed(f"found role {_shown(role)} in '{where}', expected {', '.join(roles)}{_hint(role, roles)}")
    if role == "system" and not first:
        raise Malformed(f"found role 'system' in '{where}', expected it in the first message only")
    return Message(role=role, content=_text(row["content"], f"{where}.content"))


def _prompt(row: dict[str, Any], domain: str | None, messages: tuple[Message, ...]) -> Prompt:
    source_id, own = row.get("id"), row.get("domain")
    if isinstance(source_id, int) and not isinstance(source_id, bool):
        source_id = str(source_id)
    return Prompt(
        messages=messages,
        domain=(domain or GENERAL) if own is None else _text(own, "domain"),
        source_id=None if source_id is None else _text(source_id, "id"),
    )


def _text(found: Any, where: str) -> str:
    """Return `found` if it is text that a store, a terminal and a model server can all take."""
    if not isinstance(found, str):
        raise Malformed(f"found {_kind(found)} in '{where}', expected text")
    if not found.strip():
        raise Malformed(f"found an empty text in '{where}', expected text")
    if "\0" in found:
        raise Poison(f"found a NUL at character {found.index(chr(0)) + 1} of '{where}', expected text without NUL")
    if lone := re.search("[\ud800-\udfff]", found):
        what = f"half a surrogate pair (U+{ord(lone[0]):04X}) at character {lone.start() + 1} of '{where}'"
        raise Poison(f"found {what}, expected whole characters")
    return found


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    held = dict(pairs)
    if len(held) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise Malformed(f"found the key {_shown(twice)} twice in one object, expected it once")
    return held


def _known(row: dict[str, Any], keys: tuple[str, ...], where: str = "") -> None:
    for key in row:
        if key not in keys:
            raise Malformed(f"found the unknown key {_shown(key)}{where}, expected {', '.join(keys)}{_hint(key, keys)}")


def _an_object(found: Any, expected: str) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise Malformed(f"found {_kind(found)}, expected {expected}")
    return found


def _without_nulls(message: Any) -> Any:
    """Drop the columns that a dataset fills up with null because some other row has them."""
    return {k: v for k, v in message.items() if v is not None} if isinstance(message, dict) else message


def _hint(name: Any, known: tuple[str, ...]) -> str:
    near = nearest(name, known) if isinstance(name, str) else None
    return f"; did you mean '{near}'?" if near else ""


def _shown(found: Any) -> str:
    return quoted(found) if isinstance(found, str) else _kind(found)


def _kind(found: Any) -> str:
    if found is None or isinstance(found, bool):
        return {None: "null", True: "true", False: "false"}[found]
    if isinstance(found, (int, float)):
        return f"the number {found}"
    if isinstance(found, str):
        return f"the text {quoted(found)}"
    size = len(found) if isinstance(found, (list, tuple, dict)) else 0
    return f"an object of {size} keys" if isinstance(found, dict) else f"a list of {size}"
