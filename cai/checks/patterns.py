"""Patterns: RE2, which has no backtracking, so that searching is linear in the text whatever the pattern."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import re2

from cai.yamlfile import quoted

_MAX_PATTERN = 2_000
_PHRASES_BYTES = 1 << 28
"""Memory that the automaton of a phrase file may take; RE2's own default holds a few thousand phrases."""


class PatternError(ValueError):
    """A pattern that RE2 does not take; the message says why and at which character."""


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


@lru_cache(maxsize=512)
def compiled(pattern: str) -> Any:
    """Return the compiled RE2 pattern. Raises PatternError."""
    if len(pattern) > _MAX_PATTERN:
        raise PatternError(f"found a pattern of {len(pattern)} characters, expected at most {_MAX_PATTERN}")
    try:
        return re2.compile(pattern, _options())
    except re2.error as error:
        said = error.args[0]
        raise PatternError(_pattern_fault(pattern, said.decode() if isinstance(said, bytes) else str(said))) from error


def _pattern_fault(pattern: str, said: str) -> str:
    """Return what is wrong with a pattern and where, from RE2's `reason: part`."""
    reason, _, part = said.partition(": ")
    at = pattern.find(part) if part and part != pattern else -1
    where = f" at character {at + 1}" if at >= 0 else ""
    advice = ""
    if part.startswith(("(?=", "(?!", "(?<")):
        advice = "; RE2 has no lookahead or lookbehind, say it with must_match and must_not_match together"
    elif part[:1] == "\\" and part[1:2].isdigit():
        advice = "; RE2 has no references back to a group, write the group out again"
    return f"found the pattern {quoted(pattern)}, which RE2 does not take{where}: {reason} {quoted(part)}{advice}"


@lru_cache(maxsize=8)
def any_of(phrases: tuple[str, ...]) -> Any:
    """Return one pattern whose group finds any of the phrases as whole words, in any case, however they are spaced."""
    options = _options()
    options.max_mem = _PHRASES_BYTES
    spaced = (r"\s+".join(re2.escape(word) for word in phrase.split()) for phrase in phrases)
    return re2.compile(rf"(?i)(?:^|[^\pL\pN_])({'|'.join(spaced)})(?:$|[^\pL\pN_])", options)
