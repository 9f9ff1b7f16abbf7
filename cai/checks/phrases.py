"""The file of banned phrases: one a line."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

MAX_BYTES = 1 << 20
MAX_PHRASES = 20_000


def phrases_in(path: Path) -> str:
    """Return the text of a phrase file. Raises ValueError saying what is wrong with it."""
    try:
        raw = path.read_bytes() if path.stat().st_size <= MAX_BYTES else None
    except OSError as error:
        raise ValueError(f"found no readable file at '{path}' ({(error.strerror or str(error)).lower()})") from error
    if raw is None:
        raise ValueError(f"found more than {MAX_BYTES:,} bytes in '{path}', expected a list of phrases")
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"found the byte 0x{raw[error.start]:02x} in '{path}', expected UTF-8") from error
    phrases = phrases_of(text)
    if not phrases:
        raise ValueError(f"found no phrase in '{path}', expected one a line")
    if len(phrases) > MAX_PHRASES:
        raise ValueError(f"found {len(phrases):,} phrases in '{path}', expected at most {MAX_PHRASES:,}")
    return text


@lru_cache(maxsize=32)
def phrases_of(text: str) -> tuple[str, ...]:
    """Return the phrases of a file's text; what holds no letter and no digit is none."""
    lines = (line.strip() for line in text.splitlines())
    return tuple(dict.fromkeys(line for line in lines if not line.startswith("#") and any(map(str.isalnum, line))))
