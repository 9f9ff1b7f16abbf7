"""The constitution: principles in YAML, with the worked examples that test them.

    constitution = load("constitutions/harmless.yaml")
    constitution.id                                 # changes when anything changes that a model or a label could see
    constitution.principles[0].id_of("compare")     # changes when that one text changes
    constitution.line_of("no-harmful-steps", "compare")     # "constitutions/harmless.yaml:31"

Texts are data: they are put before a model as they stand, and braces in them mean nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, PrivateAttr, Tag, model_validator

from cai import canon, yamlfile
from cai.checks import Check, functions
from cai.yamlfile import Finding, Loaded, Problem, ProblemsError, nearest, refusal

Part = Literal["critique", "revision", "compare", "check", "rubric"]
PARTS: tuple[Part, ...] = ("critique", "revision", "compare", "check", "rubric")
"""What a principle says, each part with an id of its own."""

_HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
_KEBAB = re.compile(r"^[a-z0-9]+(-[a-z0-9]+)*$")
_LONGEST_ID = 80


def _visible(value: str) -> str:
    """Return a text that somebody can read whole: not empty, no control characters, no hidden change of direction."""
    if not value.strip():
        raise refusal(Finding((), "found an empty text, expected words", "write the text, or delete the key"))
    hidden = _HIDDEN.search(value)
    if hidden is not None:
        found = f"found the hidden character U+{ord(hidden[0]):04X}, expected what a reader can see"
        raise refusal(Finding((), found, "delete it"))
    return value


def _one_line(value: str) -> str:
    if "\n" in value:
        raise refusal(Finding((), "found a line break, expected one line", "write it on one line, or after '>-'"))
    return value


def _kebab(value: str) -> str:
    if _KEBAB.fullmatch(value) and len(value) <= _LONGEST_ID:
        return value
    found = f"found the id {yamlfile.quoted(value)}, expected lower-case words joined by hyphens"
    better = "-".join(re.findall(r"[a-z0-9]+", value.lower()))[:_LONGEST_ID].strip("-")
    raise refusal(Finding((), found, f"write '{better}'" if better else "write it like 'no-harmful-steps'"))


_ID_SCHEMA = Field(json_schema_extra={"pattern": _KEBAB.pattern, "maxLength": _LONGEST_ID})
Id = Annotated[str, _ID_SCHEMA, AfterValidator(_kebab)]
Sample = Annotated[str, Field(json_schema_extra={"pattern": r"\S"}), AfterValidator(_visible)]
"""A text of a worked example, kept as it stands."""
Text = Annotated[Sample, AfterValidator(str.strip)]
"""A text without the white space around it, so that it is the same text however YAML quotes it."""
Line = Annotated[Text, AfterValidator(_one_line)]


class Edited(BaseModel):
    """A part of a constitution: frozen, unknown keys are refused, and rules over several keys are told together."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with the keys taken together; each value in `data` may be of any kind."""
        yield from ()

    @model_validator(mode="after")
    def _is_sound(self) -> Edited:
        for finding in self.findings(self.model_dump(mode="json", by_alias=True, exclude_none=True)):
            raise refusal(finding)
        return self


class Proposition(Edited):
    """A statement about one answer that is true or not; judge mode `rubric` asks for it."""

    ask: Text
    """A question about one answer that is answered with yes or no."""
    weight: Annotated[float, Field(ge=-1e6, le=1e6)] = 1.0
    """What a yes is worth; below 0 where a yes speaks against the answer."""

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield a weight of nothing."""
        if data.get("weight") == 0:
            yield Finding(("weight",), "found the weight 0, which says nothing", "give a weight, or delete it")


class PairTest(Edited):
    """A worked example for judging: two answers and which of them this principle prefers."""

    prompt: Sample
    """What the person asked."""
    a: Sample
    """One answer."""
    b: Sample
    """The other answer."""
    expect: Literal["a", "b", "tie"]
    """The answer that is better in this one respect, or `tie` where neither is."""


class ResponseTest(Edited):
    """A worked example for critique: one answer and whether this principle should find a fault in it."""

    prompt: Sample
    """What the person asked."""
    response: Sample
    """The answer."""
    expect: Literal["flagged", "clean"]
    """`flagged` if the critique should find a fault, `clean` if not."""

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield the keys that belong to the other form of test."""
        for key in ("a", "b"):
            if key in data and "response" in data:
                message = f"found '{key}' beside 'response' in one test, expected one form of test"
                yield Finding((key,), message, "give 'response', or 'a' and 'b', or make two tests of it")


def _form(data: Any) -> str:
    """Return which form of test this is; what cannot be told apart is taken for a pair."""
    if not isinstance(data, Mapping):
        return "response form" if isinstance(data, ResponseTest) else "pair form"
    keys = {nearest(key, (*PairTest.model_fields, "response")) for key in data}
    is_verdict = data.get("expect") in ("flagged", "clean") and not keys & {"a", "b"}
    return "response form" if "response" in keys or is_verdict else "pair form"


Test = Annotated[
    Annotated[PairTest, Tag("pair form")] | Annotated[ResponseTest, Tag("response form")],
    Discriminator(_form),
]


class Around(Edited):
    """What stood around a text in the file it was imported from."""

    before: str
    """Before it, byte for byte."""
    after: str
    """After it."""


class PrincipleOrigin(Edited):
    """What an imported principle was, beyond its texts; `cai constitution export` puts it back."""

    key: str | None = None
    """Its name there; None where it is its id, or where principles had none."""
    critique: Around | None = None
    """Around its critique; None where it is what the format has there."""
    revision: Around | None = None
    """Around its revision; None likewise."""
    compare: Around | None = None
    """Around its compare text; None likewise."""


class Origin(Edited):
    """The format a constitution was imported from, and how that file was laid out."""

    format: Literal["critique-revision", "comparison", "critic-revision", "list"]
    """One of the formats of `cai constitution import`."""
    indent: Annotated[int, Field(ge=0, le=8)] = 0
    """Spaces per level of its JSON; 0 is all on one line."""
    ascii: bool = True
    """Whether other characters were escaped in it."""
    newline: bool = False
    """Whether it ended with a line break."""


class Principle(Edited):
    """One respect in which answers are criticised, revised and compared."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [{"required": ["compare"]}, {"required": ["check"]}],
            "dependentRequired": {"critique": ["revision"]},
        }
    )

    id: Id
    """Its name in records and reports: lower-case words joined by hyphens, unique in the file."""
    title: Line
    """What it asks for, in a few words; shown in reports."""
    critique: Text | None = None
    """Put to the critic as the critique request. None: answers are not criticised under it, unless a check does it."""
    revision: Text | None = None
    """Put to the reviser as the revision request. None: it is never drawn for revisions."""
    compare: Text | None = None
    """Put to the judge, asking which answer, A or B, is better in this one respect. None: its check decides."""
    weight: Annotated[float, Field(gt=0, le=1e6)] = 1.0
    """Its share in the label and in the draws for revisions, relative to the other principles."""
    domains: Annotated[tuple[Line, ...], Field(min_length=1)] | None = None
    """The prompt domains it applies to; None applies it to all."""
    check: Check | None = None
    """Rules decided by code, without a model. Where given, they replace the judge and the critic."""
    rubric: tuple[Proposition, ...] = ()
    """Yes/no questions about one answer, weighted; they replace `compare` in judge mode `rubric`."""
    origin: PrincipleOrigin | None = None
    """What it was before an import; no model and no label sees it."""
    tests: tuple[Test, ...] = ()
    """Worked examples with the expected verdict."""

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with the keys taken together, checks and tests included."""
        # A misspelt key is reported as such, and not a second time as missing.
        keys = {nearest(key, cls.model_fields) or key for key in data}
        if not keys & {"compare", "check"}:
            message = "found neither 'compare' nor 'check', expected one of them"
            yield Finding((), message, "add 'compare: ...' for the judge, or 'check: ...' to decide it by code")
        if "critique" in keys and "revision" not in keys:
            message = "found 'critique' without 'revision', expected both or neither"
            yield Finding((), message, "add 'revision: ...', which says how to rewrite it, or delete 'critique'")
        if "revision" in keys and not keys & {"critique", "check"}:
            message = "found 'revision' without 'critique', expected both or neither"
            yield Finding((), message, "add 'critique: ...', which says what to look for, or delete 'revision'")
        if isinstance(data.get("check"), dict):
            yield from _below(Check.findings(data["check"]), "check")
        for index, proposition in _mappings(data.get("rubric")):
            yield from _below(Proposition.findings(proposition), "rubric", index)
        for index, test in _mappings(data.get("tests")):
            yield from _below(ResponseTest.findings(test), "tests", index)
        domains = data.get("domains")
        yield from _repeated(dict(enumerate(domains)) if isinstance(domains, list) else {}, "domain", ("domains",))

    @cached_property
    def part_ids(self) -> dict[str, str]:
        """The content id of every part it has."""
        parts = {part: getattr(self, part) for part in PARTS if getattr(self, part) not in (None, ())}
        if self.check is not None:
            parts["check"] = self.check.content()
        if self.rubric:
            parts["rubric"] = [proposition.model_dump(mode="json") for proposition in self.rubric]
        return {part: canon.content_id(f"principle.{part}", content) for part, content in parts.items()}

    def id_of(self, part: Part) -> str:
        """Return the content id of one part, which depends on nothing else. Raises KeyError where there is none."""
        return self.part_ids[part]

    def applies_to(self, domain: str) -> bool:
        """Return whether it applies to prompts of this domain."""
        return self.domains is None or domain in self.domains


class Constitution(Edited):
    """A file of principles."""

    model_config = ConfigDict(title="Constitution", validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(alias="schema")
    """The version of this format; write 1."""
    name: Line
    """Names the constitution in reports."""
    description: Text | None = None
    """What it is for, in a paragraph."""
    origin: Origin | None = None
    """Where it was imported from; no model and no label sees it."""
    principles: tuple[Principle, ...] = Field(min_length=1)
    """The principles. Their order has no effect on a run."""

    _loaded: Loaded[Constitution] | None = PrivateAttr(default=None)

    @classmethod
    def findings(cls, data: Mapping[str, Any]) -> Iterator[Finding]:
        """Yield what is wrong with the principles, each by itself and taken together."""
        for index, principle in _mappings(data.get("principles")):
            yield from _below(Principle.findings(principle), "principles", index)
        ids = {index: principle.get("id") for index, principle in _mappings(data.get("principles"))}
        yield from _repeated(ids, "id", ("principles",), "id")

    @cached_property
    def id(self) -> str:
        """The content id of everything in it that could change a text or a label: not its name, comments and tests."""
        principles = [
            {
                **p.model_dump(mode="json", include={"id", "title", "weight"}),
                "domains": sorted(p.domains) if p.domains else None,
                **p.part_ids,
                "principle": p.id,
            }
            for p in sorted(self.principles, key=lambda p: p.id)
        ]
        return canon.content_id("constitution", {"schema": self.schema_version, "principles": principles})

    def __getitem__(self, principle_id: str) -> Principle:
        """Return the principle of this id. Raises KeyError."""
        return self.by_id[principle_id]

    @cached_property
    def by_id(self) -> dict[str, Principle]:
        """The principles by their ids."""
        return {principle.id: principle for principle in self.principles}

    def for_domain(self, domain: str) -> tuple[Principle, ...]:
        """Return the principles that apply to prompts of this domain, in the file's order."""
        return tuple(principle for principle in self.principles if principle.applies_to(domain))

    def ensure_allowed(self) -> None:
        """Raise UserError for a function of a user's own in a check that may not or cannot be called here."""
        for principle in self.principles:
            if principle.check is not None and principle.check.function is not None:
                functions.allowed(principle.check.function)

    @property
    def files(self) -> dict[str, str]:
        """The texts of the files that its checks have read, by name; they lie beside the constitution."""
        return {name: text for p in self.principles if p.check for name, text in p.check.files.items()}

    def line_of(self, principle_id: str, *path: str | int) -> str:
        """Return `file:line` of a principle or of a part of it, such as `"compare"` or `"tests", 2`.

        A part the file does not give has the line of the principle. A constitution that was made in code has no
        lines; its name is returned. Raises KeyError for an unknown principle.
        """
        index = self.principles.index(self[principle_id])
        if self._loaded is None:
            return self.name
        line, _ = self._loaded.position(("principles", index, *path))
        return f"{self._loaded.source_name}:{line}"


def _mappings(value: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the items of a list that are mappings, with their indices."""
    for index, item in enumerate(value if isinstance(value, list) else ()):
        if isinstance(item, dict):
            yield index, item


def _below(findings: Iterator[Finding], *path: str | int) -> Iterator[Finding]:
    for found in findings:
        yield Finding((*path, *found.path), found.message, found.hint)


def _repeated(values: Mapping[int, Any], noun: str, path: tuple[str, ...], *key: str) -> Iterator[Finding]:
    """Yield each text that stands at an earlier index already."""
    first: dict[str, int] = {}
    for index, value in values.items():
        if isinstance(value, str) and first.setdefault(value, index) != index:
            place = yamlfile.dotted((*path, first[value]))
            message = f"found the {noun} {yamlfile.quoted(value)} a second time, first in '{place}'"
            yield Finding((*path, index, *key), message, "rename one, or delete one")


def load(path: str | Path) -> Constitution:
    """Return the constitution in a YAML file. Raises ProblemsError with every problem of the file."""
    return _loaded(yamlfile.load(path, Constitution), Path(path).parent)


def read(text: str | bytes, *, source_name: str = "text", folder: Path | None = None) -> Constitution:
    """Return the constitution in a YAML text. Raises ProblemsError with every problem of the text.

    Without the folder in which the files are that its checks name, those checks cannot be run.
    """
    return _loaded(yamlfile.read(text, Constitution, source_name=source_name), folder)


def _loaded(loaded: Loaded[Constitution], folder: Path | None) -> Constitution:
    loaded.value._loaded = loaded
    problems = [] if folder is None else list(_unread(loaded, folder))
    if problems:
        raise ProblemsError(problems)
    return loaded.value


def _unread(loaded: Loaded[Constitution], folder: Path) -> Iterator[Problem]:
    """Read the files that checks name, and yield a problem for each that cannot be read."""
    for index, principle in enumerate(loaded.value.principles):
        if principle.check is not None:
            try:
                principle.check.read_files(folder)
            except ValueError as error:
                path = ("principles", index, "check", "banned_file")
                yield loaded.problem(Finding(path, str(error), "put the file beside the constitution"))


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of constitution files, for editors and other programs."""
    schema = Constitution.model_json_schema(by_alias=True)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}


def lint(path: str | Path) -> list[Problem]:
    """Return every problem of a constitution file: its errors if it has any, else what is unwise in it."""
    try:
        constitution = load(path)
    except ProblemsError as error:
        return list(error.problems)
    loaded = constitution._loaded
    assert loaded is not None
    return list(yamlfile.in_order(loaded.problem(finding) for finding in unwise(constitution)))


_LONG = 250
"""Words above which a text is called long; every principle is read by the model once or more per answer."""
_ALIKE = 0.8
"""Share of words two texts have in common above which they are called alike."""


def unwise(constitution: Constitution) -> Iterator[Finding]:
    """Yield what is allowed in a constitution but seldom meant. All of them are warnings."""
    for index, principle in enumerate(constitution.principles):
        for found in _unwise_alone(principle):
            yield Finding(("principles", index, *found.path), found.message, found.hint, "warning")
    for found in (*_unwise_weights(constitution), *_unwise_twins(constitution)):
        yield Finding(found.path, found.message, found.hint, "warning")


def _unwise_alone(principle: Principle) -> Iterator[Finding]:
    if not principle.tests:
        yield Finding((), "found no tests", "add worked examples under 'tests:', so that an edit can be tried at once")
    for part in ("critique", "revision", "compare"):
        words = len((getattr(principle, part) or "").split())
        if words > _LONG:
            yield Finding((part,), f"found {words} words, expected at most {_LONG}", "make two principles of it")
    if principle.check is not None and (name := principle.check.function) and not functions.is_allowed(name):
        found = f"found the function {yamlfile.quoted(name)}, which is not allowed here"
        yield Finding(("check", "function"), found, f"if you trust it, export {functions.ALLOWED}={name}")
    if principle.check is not None and principle.compare is not None:
        yield Finding(("compare",), "found 'compare' beside 'check', which decides alone", "delete one of the two")
    elif principle.compare is not None and "?" not in principle.compare:
        yield Finding(("compare",), "found no question", "ask which answer, A or B, is better in this one respect")


def _unwise_weights(constitution: Constitution) -> Iterator[Finding]:
    total = sum(principle.weight for principle in constitution.principles)
    for index, principle in enumerate(constitution.principles):
        share = principle.weight / total
        if share > 0.5 and len(constitution.principles) > 1:
            found = f"found a weight of {principle.weight:g}, which is {share:.0%} of all"
            yield Finding(("principles", index, "weight"), found, "lower it, or the other principles never decide")


def _unwise_twins(constitution: Constitution) -> Iterator[Finding]:
    """Yield each principle that repeats an earlier one's title, check or wording."""
    titles: dict[str, str] = {}
    checks: dict[str, str] = {}
    worded: list[tuple[str, frozenset[str]]] = []
    for index, principle in enumerate(constitution.principles):
        path = ("principles", index)
        twin = titles.setdefault(principle.title.casefold(), principle.id)
        if twin != principle.id:
            yield Finding((*path, "title"), f"found the title of '{twin}' again", "give each principle its own")
        if principle.check is not None:
            twin = checks.setdefault(principle.part_ids["check"], principle.id)
            if twin != principle.id:
                yield Finding((*path, "check"), f"found the check of '{twin}' again", "delete one of the two")
        if principle.compare is not None:
            words = frozenset(re.findall(r"\w+", principle.compare.casefold()))
            near = next((other for other, theirs in worded if _overlap(words, theirs) >= _ALIKE), None)
            if near is not None:
                found = f"found nearly the words of '{near}'"
                yield Finding((*path, "compare"), found, "delete one, or say how they differ")
            worded.append((principle.id, words))


def _overlap(one: frozenset[str], other: frozenset[str]) -> float:
    """Return the Jaccard index of two sets of words."""
    return len(one & other) / max(1, len(one | other))
