"""A tokenizer without a vocabulary file: one token per UTF-8 byte.

The scripted server speaks it, so that prompts sent to that server as token ids read back as text. A token costs a
byte: an answer of 60 words is some 350 tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

END_OF_TEXT = 256
"""The one token that is no byte."""

VOCAB_SIZE = 257

TURN_OPEN = "<|im_start|>"
TURN_CLOSE = "<|im_end|>"


class ByteTokenizer:
    """Turns text into byte values (0 to 255) and back; 256 ends a text and decodes to nothing."""

    eos_token_id = END_OF_TEXT
    vocab_size = VOCAB_SIZE

    def encode(self, text: str) -> list[int]:
        """Return the UTF-8 byte values of `text`. A lone surrogate raises UnicodeEncodeError."""
        return list(text.encode())

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; bytes that are not UTF-8 become U+FFFD."""
        return bytes(i for i in ids if i < END_OF_TEXT).decode(errors="replace")

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
    ) -> str:
        """Return the conversation as one prompt, each turn between turn markers.

        `continue_final_message` leaves the last turn open, so that the model goes on writing it.
        """
        turns = "".join(f"{TURN_OPEN}{m['role']}\n{text_of(m.get('content'))}{TURN_CLOSE}\n" for m in messages)
        if continue_final_message:
            return turns.removesuffix(f"{TURN_CLOSE}\n")
        return f"{turns}{TURN_OPEN}assistant\n" if add_generation_prompt else turns


def text_of(content: str | Sequence[Mapping[str, Any]] | None) -> str:
    """Return the text of a message's content, which is a string, a list of text parts, or missing."""
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.get("text", "") for part in content)
