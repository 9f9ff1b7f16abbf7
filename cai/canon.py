"""Canonical JSON and content ids.

A content id is ``b2:`` followed by 40 hex digits: BLAKE2b with a 160-bit digest over the canonical JSON of
``[tag, content]``. Canonical JSON is UTF-8 without white space, object keys sorted by code point, floats in their
shortest form that reads back equal. The tag keeps two kinds of record with equal fields apart. Changing anything
here changes every id ever written, so it never changes: a new scheme gets a new prefix.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import orjson

ID_PREFIX = "b2:"
_DIGEST_BYTES = 20
_CHAIN_BYTES = 32
GENESIS = "0" * (2 * _CHAIN_BYTES)
"""The chain hash that stands before a ledger's first row."""


def dumps(content: Any, default: Callable[[Any], Any] | None = None) -> bytes:
    """Return the canonical JSON of `content`. Lone surrogates and types that are not JSON raise TypeError.

    `default` says what stands for a value of another type; what it says is written canonically too.
    """
    return orjson.dumps(content, default=default, option=orjson.OPT_SORT_KEYS)


def loads(text: bytes | str) -> Any:
    """Return what canonical (or any) JSON text holds. Raises ValueError where it is not JSON."""
    return orjson.loads(text)


def digest(content: bytes) -> bytes:
    """Return 16 bytes that stand for `content` where many are held in memory."""
    return blake2b(content, digest_size=16).digest()


def id_of_bytes(content: bytes) -> str:
    """Return the content id of bytes that are already canonical."""
    return ID_PREFIX + blake2b(content, digest_size=_DIGEST_BYTES).hexdigest()


def content_id(tag: str, content: Any) -> str:
    """Return the content id of `content` (anything JSON can say) under `tag`."""
    return id_of_bytes(dumps([tag, content]))


def id_of_parts(parts: Iterable[bytes]) -> str:
    """Return the content id of what `parts` are one after the other."""
    digest = blake2b(digest_size=_DIGEST_BYTES)
    for part in parts:
        digest.update(part)
    return ID_PREFIX + digest.hexdigest()


def id_of_files(*paths: Path) -> str:
    """Return the content id of a file's bytes, or of several files' one after the other, read piece by piece."""
    return id_of_parts(part for path in paths for part in _parts(path))


def _parts(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from iter(partial(file.read, 1 << 20), b"")


def id_of_json(tag: str, content: bytes) -> str:
    """Return the content id under `tag` of what canonical JSON holds: `content_id`, without writing it again."""
    return id_of_bytes(b'["%b",%b]' % (tag.encode(), content))


def text_id(text: str) -> str:
    """Return the content id of one text. Raises UnicodeEncodeError on lone surrogates."""
    return id_of_bytes(b"text\0" + text.encode())


def chain(previous: str, kind: str, body: bytes) -> str:
    """Return the hash (64 hex digits) of a ledger row that follows the row with hash `previous`."""
    return blake2b(f"{previous}\0{kind}\0".encode() + body, digest_size=_CHAIN_BYTES).hexdigest()


def unit_interval(*parts: str | int) -> float:
    """Return a number in [0, 1) drawn by hash from `parts`: the same parts always draw the same number."""
    digest = blake2b(dumps(parts), digest_size=8).digest()
    return int.from_bytes(digest) / 2**64


def seed_of(*parts: str | int) -> int:
    """Return a seed in [0, 2**31) drawn by hash from `parts`."""
    return int(unit_interval(*parts) * 2**31)
