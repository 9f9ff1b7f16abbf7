"""Programmatic principles: rules that code decides, without a model.

    result = checks.run(check, "Sure! Here is a list:")
    result.passed, result.sentence()      # False, "It has 5 words; at least 10 are required."

Every rule is linear in the length of the text, whatever the text: patterns are RE2, which has no backtracking.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from typing import Annotated, Any

import re2
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from cai.yamlfile import Finding, quoted, refusal

MAX_WORDS = 100_000
"""No limit is set above this."""
_MAX_PATTERN = 2_000
_SHOWN = 60
"""So many characters of a match are shown."""
_ENDS = ".!?。！？"
_CLOSERS = "\"'`*_)]}>»›”’“‘」』）】"
_ABBREVIATIONS = frozenset("e.g. i.e. etc. vs. mr. mrs. ms. dr. prof. st. no. approx. cf. ca. fig. inc. ltd.".split())


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


def _pattern(value: str) -> str:
    try:
        compiled(value)
    except PatternError as error:
        raise refusal(Finding((), str(error), "correct the pattern")) from error
    return value


Limit = Annotated[int, Field(ge=1, le=MAX_WORDS)]
Pattern = Annotated[str, Field(min_length=1), AfterValidator(_pattern)]


class Check(BaseModel):
    """Rules an answer must keep, all of them. At least one is given.

    A word is anything between white space that holds a letter or a digit. Patterns are searched for anywhere in the
    answer; flags stand inside them, as in `(?i)as an ai` or `(?m)^#`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    min_words: Limit | None = None
    """Fewest words; null sets no limit."""
    max_words: Limit | None = None
    """Most words; null sets no limit."""
    max_sentences: Annotated[int, Field(ge=1, le=1_000)] | None = None
    """Most sentences; null sets no limit."""
    must_match: tuple[Pattern, ...] = ()
    """RE2 patterns that must each be found."""
    must_not_match: tuple[Pattern, ...] = ()
    """RE2 patterns of which none may be found."""
    ends_sentence: bool = False
    """Whether the answer must end with `.`, `!` or `?`; quotes, brackets, marks and emoji after it are
    passed over."""
    no_list: bool = False
    """Whether bullets and numbered lines are forbidden."""

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with the rules as a whole; each value in `data` may be of any kind."""
        if all(value is False or value == [] for value in data.values()):
            message = "found no rule in this check, expected at least one"
            yield Finding((), message, f"add one of {', '.join(cls.model_fields)}")
        low, high = data.get("min_words"), data.get("max_words")
        if _is_count(low) and _is_count(high) and low > high:
            message = f"found min_words {low} above max_words {high}, so that no answer can pass"
            yield Finding(("min_words",), message, "lower min_words or raise max_words")

    @model_validator(mode="after")
    def _makes_sense(self) -> Check:
        for finding in self.findings(self.model_dump(mode="json", exclude_none=True)):
            raise refusal(finding)
        return self


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True, slots=True)
class Failure:
    """One rule that an answer broke."""

    rule: str
    """The rule's name, as in the YAML."""
    found: str
    """What the answer has, as a clause: `it has 83 words`."""
    expected: str
    """What the rule asks for, as a clause: `at most 50 are allowed`."""
    where: str = ""
    """Where in the answer: `line 3, character 1`; empty where it is about the whole answer."""

    def sentence(self) -> str:
        """Return the failure as one sentence."""
        place = f" ({self.where})" if self.where else ""
        return f"{self.found[:1].upper()}{self.found[1:]}{place}; {self.expected}."


@dataclass(frozen=True, slots=True)
class CheckResult:
    """What a check says about one answer."""

    passed: bool
    """Whether every rule is kept."""
    failures: tuple[Failure, ...]
    """The rules that are not, in the order in which Check lists them."""

    def sentence(self) -> str:
        """Return the failures as the critique a reviser reads."""
        if self.passed:
            return "It keeps every rule of this principle; nothing needs to change."
        return " ".join(failure.sentence() for failure in self.failures)


def run(check: Check, text: str) -> CheckResult:
    """Return which rules of `check` the answer `text` breaks. Linear in its length; never raises for any text."""
    # A model server may deliver half a surrogate pair, which has no UTF-8 for RE2 to read.
    readable = text.encode("utf-8", "replace").decode()
    failures = tuple(_failures(check, readable))
    return CheckResult(not failures, failures)


def compare(check: Check, a: str, b: str) -> float:
    """Return P(a is better): 1.0 or 0.0 where only one answer passes, 0.5 where both or neither do."""
    return 0.5 + (run(check, a).passed - run(check, b).passed) / 2


def _failures(check: Check, text: str) -> Iterator[Failure]:
    yield from _length(check, text)
    for pattern in check.must_match:
        if compiled(pattern).search(text) is None:
            yield Failure("must_match", f"nothing in it matches {quoted(pattern)}", "this pattern must be found")
    for pattern in check.must_not_match:
        match = compiled(pattern).search(text)
        if match is not None:
            found = f"it contains {quoted(match.group(), _SHOWN)}"
            expected = f"what matches {quoted(pattern)} is not allowed"
            yield Failure("must_not_match", found, expected, _where(text, match.start()))
    if check.ends_sentence and not ends_sentence(text):
        tail = text.strip()[-20:]
        found = f"it ends with {quoted(tail)}" if tail else "it is empty"
        yield Failure("ends_sentence", found, "the last sentence must be finished")
    if check.no_list and (match := compiled(_LIST_LINE).search(text)):
        found = f"it contains the list line {quoted(match.group(1), _SHOWN)}"
        yield Failure("no_list", found, "lists are not allowed", _where(text, match.start(1)))


def _length(check: Check, text: str) -> Iterator[Failure]:
    words = count_words(text) if check.min_words or check.max_words else 0
    if check.min_words is not None and words < check.min_words:
        yield Failure("min_words", _has(words, "word"), f"at least {_are(check.min_words)} required")
    if check.max_words is not None and words > check.max_words:
        yield Failure("max_words", _has(words, "word"), f"at most {_are(check.max_words)} allowed")
    if check.max_sentences is not None and (sentences := count_sentences(text)) > check.max_sentences:
        yield Failure("max_sentences", _has(sentences, "sentence"), f"at most {_are(check.max_sentences)} allowed")


def _has(count: int, noun: str) -> str:
    return f"it has {count} {noun}" + ("" if count == 1 else "s")


def _are(count: int) -> str:
    return f"{count} is" if count == 1 else f"{count} are"


_MARK = r"(?m)^[ \t>]*((?:[-*+•‣◦–]|[0-9]{1,3}[.)])[ \t]+"
_LIST_LINE = _MARK + r"\S.*)"
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


def _where(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, character {at - text.rfind(chr(10), 0, at)}"
