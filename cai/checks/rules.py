"""What a check may ask of an answer: the rules as an editor writes them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from cai import canon
from cai.checks.language import Language
from cai.checks.patterns import PatternError, compiled
from cai.checks.phrases import phrases_in
from cai.yamlfile import Finding, quoted, refusal

MAX_WORDS = 100_000
"""No limit is set above this."""
_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,80}\.txt")


def _pattern(value: str) -> str:
    try:
        compiled(value)
    except PatternError as error:
        raise refusal(Finding((), str(error), "correct the pattern")) from error
    return value


def _file_name(value: str) -> str:
    if _FILE_NAME.fullmatch(value):
        return value
    found = f"found {quoted(value)}, expected the name of a .txt file beside the constitution"
    raise refusal(Finding((), found, "put the file there and write its name, such as 'banned.txt'"))


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
    min_items: Limit | None = None
    """Fewest bulleted or numbered lines; null asks for none."""
    max_items: Limit | None = None
    """Most bulleted or numbered lines; null sets no limit."""
    is_json: Literal["any", "object", "list"] | None = None
    """What JSON the whole answer must be; null asks for none."""
    json_keys: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    """Keys that the JSON object must hold; they make `is_json` an object."""
    language: Language | None = None
    """The language the answer must be in; null asks for none. It fails only where another language is plain to see:
    by its letters, or by its function words in answers of at least six words."""
    banned_file: Annotated[str, AfterValidator(_file_name)] | None = None
    """A text file beside the constitution, one phrase a line, of which none may occur as whole words, in any case;
    null bans none. Blank lines and lines that begin with # are passed over. A run keeps a copy."""
    function: Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_.-]*$", max_length=80)] | None = None
    """Name of a function of your own, installed under the entry points `cai.checks`; null calls none. It is called
    only where the environment variable CAI_CHECK_FUNCTIONS names it."""

    _banned: str | None = PrivateAttr(default=None)

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
        yield from cls._structure_findings(data)

    @classmethod
    def _structure_findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        low, high = data.get("min_items"), data.get("max_items")
        if _is_count(low) and _is_count(high) and low > high:
            message = f"found min_items {low} above max_items {high}, so that no answer can pass"
            yield Finding(("min_items",), message, "lower min_items or raise max_items")
        if data.get("no_list") is True and _is_count(low):
            message = "found min_items beside no_list, so that no answer can pass"
            yield Finding(("min_items",), message, "delete one of the two")
        if data.get("json_keys") and data.get("is_json") in ("any", "list"):
            message = f"found json_keys beside is_json {quoted(data['is_json'])}, expected an object"
            yield Finding(("is_json",), message, "write object, or delete json_keys")

    @model_validator(mode="after")
    def _makes_sense(self) -> Check:
        for finding in self.findings(self.model_dump(mode="json", exclude_none=True)):
            raise refusal(finding)
        return self

    # -- the banned phrases, which stand in a file of their own ------------------------------------------------------

    def read_files(self, folder: Path) -> None:
        """Read the file this check names, in `folder`. Raises ValueError saying what is wrong with it."""
        if self.banned_file is not None:
            self._banned = phrases_in(folder / self.banned_file)

    @property
    def files(self) -> dict[str, str]:
        """The text of every file it has read, by name."""
        return {self.banned_file: self._banned} if self.banned_file and self._banned is not None else {}

    def content(self) -> dict[str, Any]:
        """Return everything that decides what it says, as JSON can say it: its rules, and what its files hold."""
        rules = self.model_dump(mode="json", exclude_defaults=True)
        return rules | {name: canon.text_id(text) for name, text in self.files.items()}


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
