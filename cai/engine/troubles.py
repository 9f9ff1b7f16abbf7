"""What a server's answer amounts to: its JSON, another try, or the end of this request or of all."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import orjson

from cai.errors import EngineError, RejectedError

_PUSH_BACKS = frozenset({429, 503})
_TIMEOUTS = frozenset({408, 504})
_TRANSIENT = _PUSH_BACKS | _TIMEOUTS | {500, 502}
_CREDENTIALS = frozenset({401, 403})
_RETRY_AFTER_MAX_S = 120.0


class Elsewhere(Exception):
    """This server is away, and a replica is up."""


class Unreachable(Exception):
    """Nothing listens there: the request was never sent."""


class TryAgain(Exception):
    """The request was sent and may pass another time."""

    def __init__(
        self,
        message: str,
        *,
        retry_after_s: float | None = None,
        pushed_back: bool = False,
        overload: bool = False,
        broken: bool = False,
        stalled: bool = False,
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.pushed_back = pushed_back
        """Whether the server was asked too much, and not this request at fault."""
        self.overload = overload or pushed_back or broken
        """Whether fewer requests at a time may help."""
        self.broken = broken
        """Whether no answer came, so that the server may be gone."""
        self.stalled = stalled
        """Whether the server answered nobody and made no tokens meanwhile."""


def read_answer(where: str, status: int, headers: Mapping[str, str], content: bytes) -> Any:
    """Return an answer's JSON. Raises TryAgain, RejectedError for this request or EngineError for all."""
    if status == 200:
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise TryAgain(f"200 with {len(content)} bytes that are not JSON") from None
    said = _message(content)
    if status in _CREDENTIALS:
        raise EngineError(f"{where}: {status} {said}; set the key's environment variable (models.….api_key_env)")
    if status == 429 and "quota" in said.lower():
        raise EngineError(f"{where}: {said}; the quota is spent, and waiting will not help")
    if status in _TRANSIENT:
        raise TryAgain(
            f"{status} {said}",
            retry_after_s=retry_after(headers),
            pushed_back=status in _PUSH_BACKS,
            overload=status in _TIMEOUTS,
        )
    raise RejectedError(f"{where}: {status} {said}", status=status)


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait: a number, or until the date that is named; None where neither stands there."""
    said = headers.get("Retry-After", "")
    try:
        is_number = said.replace(".", "", 1).isdecimal()
        seconds = float(said) if is_number else (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without its zone
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_S)


def _message(content: bytes) -> str:
    """Return what an error body says, in one line of at most 300 characters."""
    try:
        body = orjson.loads(content)
        said = body.get("error", body) if isinstance(body, dict) else body
        text = str(said.get("message", said)) if isinstance(said, dict) else str(said)
    except orjson.JSONDecodeError:
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300]
