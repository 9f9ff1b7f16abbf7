"""Words, sentences and list lines: what limits are set on. All of it is linear in the text."""

from __future__ import annotations

import re
import unicodedata
from itertools import islice

_ENDS = ".!?。！？"
_CLOSERS = "\"'`*_)]}>»›”’“‘」』）】"
_ABBREVIATIONS = frozenset("e.g. i.e. etc. vs. mr. mrs. ms. dr. prof. st. no. approx. cf. ca. fig. inc. ltd.".split())
_MARK = r"(?m)^[ \t>]*((?:[-*+•‣◦–]|[0-9]{1,3}[.)])[ \t]+"
LIST_LINE = _MARK + r"\S.*)"
# Python's own engine is faster where there is much to find. These are linear in it: no part of a pattern can give
# back what an earlier attempt has read more than once.
_LIST_MARK = re.compile(_MARK + r")(?=\S)")
_SENTENCE_END = re.compile(rf"[.!?][{re.escape(_CLOSERS)}]*(?=\s|\Z)|[。！？]+|\n\s*\n")
_WORD_CHARACTER = re.compile(r"[^\W_]")
_MOST_ENDS = 10_000


def count_words(text: str) -> int:
    """Return how many pieces between white space hold a letter or a digit."""
    return sum(1 for token in text.split() if any(map(str.isalnum, token)))


def count_sentences(text: str) -> int:
    """Return the number of sentences, an unfinished last one included; nothing is counted after 10,000 ends.

    A sentence ends where a word ends with `.`, `!` or `?`, closing quotes and brackets aside; a blank line and the
    start of a list line end one too. Common abbreviations do not. This is a count for limits, not a linguist's: an
    uncommon abbreviation counts as an end.
    """
    prose = _LIST_MARK.sub("\n\n", text)
    count, begin = 0, 0
    for end in islice(_SENTENCE_END.finditer(prose), _MOST_ENDS):
        if _is_abbreviation(prose[max(begin, end.start() - 10) : end.start() + 1]):
            continue
        count += _WORD_CHARACTER.search(prose, begin, end.start()) is not None
        begin = end.end()
    return count + (_WORD_CHARACTER.search(prose, begin) is not None)


def _is_abbreviation(tail: str) -> bool:
    words = tail.split()
    return bool(words) and words[-1].lower().lstrip(_CLOSERS + "([{") in _ABBREVIATIONS


def ends_sentence(text: str) -> bool:
    """Return whether the last character that is no quote, bracket, mark, space or emoji ends a sentence."""
    for character in reversed(text.rstrip()):
        if character in _ENDS:
            return True
        if not (character.isspace() or character in _CLOSERS or _is_emoji(character)):
            return False
    return False


def _is_emoji(character: str) -> bool:
    """Return whether a character is a symbol, or one of the invisible ones that emoji are put together with."""
    return unicodedata.category(character) in ("So", "Sk", "Cf", "Mn", "Me")


def count_items(text: str) -> int:
    """Return how many lines are bulleted or numbered."""
    return sum(1 for _ in _LIST_MARK.finditer(text))
