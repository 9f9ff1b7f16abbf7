"""Running a check: which rules an answer breaks, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cai.checks import functions, language
from cai.checks.counting import LIST_LINE, count_items, count_sentences, count_words, ends_sentence
from cai.checks.patterns import any_of, compiled
from cai.checks.phrases import phrases_of
from cai.checks.rules import Check
from cai.checks.structure import json_faults
from cai.errors import UserError
from cai.yamlfile import quoted

_SHOWN = 60
"""So many characters of a match are shown."""


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
    yield from _banned(check, text)
    if check.ends_sentence and not ends_sentence(text):
        tail = text.strip()[-20:]
        found = f"it ends with {quoted(tail)}" if tail else "it is empty"
        yield Failure("ends_sentence", found, "the last sentence must be finished")
    if check.no_list and (match := compiled(LIST_LINE).search(text)):
        found = f"it contains the list line {quoted(match.group(1), _SHOWN)}"
        yield Failure("no_list", found, "lists are not allowed", _where(text, match.start(1)))
    yield from _structure(check, text)
    if check.function is not None and (said := functions.call(check.function, text)) is not None:
        yield Failure("function", said.rstrip("."), f"'{check.function}' must be satisfied")


def _banned(check: Check, text: str) -> Iterator[Failure]:
    if check.banned_file is None:
        return
    if not check.files:
        raise UserError(
            f"the check's file '{check.banned_file}' has not been read; load the constitution from its file"
        )
    match = any_of(phrases_of(check.files[check.banned_file])).search(text)
    if match is not None:
        found = f"it contains {quoted(match.group(1), _SHOWN)}"
        yield Failure("banned_file", found, f"'{check.banned_file}' bans it", _where(text, match.start(1)))


def _structure(check: Check, text: str) -> Iterator[Failure]:
    items = count_items(text) if check.min_items or check.max_items else 0
    if check.min_items is not None and items < check.min_items:
        yield Failure("min_items", _has(items, "list line"), f"at least {_are(check.min_items)} required")
    if check.max_items is not None and items > check.max_items:
        yield Failure("max_items", _has(items, "list line"), f"at most {_are(check.max_items)} allowed")
    if check.is_json or check.json_keys:
        for rule, found, expected, at in json_faults(text, check.is_json or "object", check.json_keys):
            yield Failure(rule, found, expected, "" if at is None else _where(text, at))
    if check.language is not None and (other := language.other_than(check.language, text)):
        yield Failure("language", f"it is {other}", f"{language.NAMES[check.language]} is required")


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


def _where(text: str, at: int) -> str:
    line = text.count("\n", 0, at) + 1
    return f"line {line}, character {at - text.rfind(chr(10), 0, at)}"
