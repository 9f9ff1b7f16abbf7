"""What two constitutions differ in: principle by principle, field by field, word by word.

A principle that was given another id is recognised by its texts, so that a renaming is no removal and addition.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import product
from typing import Any, Literal

from cai.constitution import PARTS, Constitution, Principle

ALIKE = 0.6
"""Two principles of different ids whose words agree by this share (0 to 1) or more are taken for one, renamed."""
_TOLD_FIRST = ("title", "critique", "revision", "compare", "check")
FIELDS = (*_TOLD_FIRST, *(name for name in Principle.model_fields if name not in (*_TOLD_FIRST, "id", "origin")))
"""What is compared, in the order in which it is told: everything that a principle says."""
_COSTS = {
    "title": "nothing is asked again",
    "critique": "critiques drawn under it and what follows from them are written again",
    "revision": "revisions drawn under it and what follows from them are written again",
    "compare": "its comparisons are judged again",
    "check": "it is decided again by code, without a model",
    "weight": "labels are settled again, and draws for revisions shift",
    "domains": "it is asked about other prompts, and draws for revisions shift",
    "tests": "only `cai constitution test` sees it",
}


def cost_of(field: str) -> str:
    """Return what a change to a field makes a run do again."""
    return _COSTS.get(field, _COSTS["compare"])


Kind = Literal["added", "removed", "changed", "renamed", "same"]
Piece = tuple[Literal["=", "-", "+"], str]
"""A stretch of text that both have, only the old one has, or only the new one has."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """One field of one principle, before and after."""

    name: str
    old: Any
    """The value before, as JSON can say it; None where there was none."""
    new: Any
    pieces: tuple[Piece, ...] = ()
    """The word-level difference, for texts on both sides."""
    examples: tuple[tuple[Piece, ...], ...] = ()
    """Of `tests`: every worked example that differs, word by word."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return {"field": self.name, "old": self.old, "new": self.new, "words": [list(p) for p in self.pieces],
                "examples": [[list(p) for p in example] for example in self.examples],
                "costs": cost_of(self.name)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class PrincipleChange:
    """One principle, before and after."""

    kind: Kind
    """`renamed` where the id differs; its fields may differ too."""
    old: Principle | None
    new: Principle | None
    fields: tuple[FieldChange, ...] = ()

    @property
    def id(self) -> str:
        """The id it has now, or had."""
        return (self.new or self.old).id  # type: ignore[union-attr]

    def changes(self, *names: str) -> bool:
        """Return whether any of these fields differs."""
        return any(field.name in names for field in self.fields)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return {
            "kind": self.kind,
            "old": self.old.id if self.old else None,
            "new": self.new.id if self.new else None,
            "fields": [field.as_dict() for field in self.fields],
        }


@dataclass(frozen=True)
class Difference:
    """Two constitutions side by side."""

    old: Constitution
    new: Constitution
    principles: tuple[PrincipleChange, ...]
    """Every principle of either, in the new file's order; removed ones last."""

    @property
    def changed(self) -> list[PrincipleChange]:
        """The principles that are not the same in both."""
        return [change for change in self.principles if change.kind != "same"]

    @property
    def renamed(self) -> dict[str, str]:
        """Old ids by new ones, for principles that were renamed."""
        return {c.new.id: c.old.id for c in self.principles if c.kind == "renamed" and c.old and c.new}

    @property
    def is_silent(self) -> bool:
        """Whether nothing differs that a model or a label could see."""
        return self.old.id == self.new.id

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        sides = {"old": self.old, "new": self.new}
        return {
            **{side: {"name": c.name, "id": c.id, "principles": len(c.principles)} for side, c in sides.items()},
            "silent": self.is_silent,
            "changes": [change.as_dict() for change in self.changed],
            "same": [change.id for change in self.principles if change.kind == "same"],
        }


def compare(old: Constitution, new: Constitution) -> Difference:
    """Return what differs between two constitutions. The order of principles means nothing and is not compared."""
    partner = dict(_same_ids(old, new)) | _renamed(old, new)
    kept = [_paired(partner.get(p.id), p) for p in new.principles]
    gone = [p for p in old.principles if p not in partner.values()]
    return Difference(old, new, (*kept, *(PrincipleChange("removed", p, None, _all_of(p, is_new=False)) for p in gone)))


def _same_ids(old: Constitution, new: Constitution) -> Iterator[tuple[str, Principle]]:
    for principle in new.principles:
        if principle.id in old.by_id:
            yield principle.id, old[principle.id]


def _renamed(old: Constitution, new: Constitution) -> dict[str, Principle]:
    """Return the old principle of every new id that only renames it: the most alike pairs first."""
    gone = [p for p in old.principles if p.id not in new.by_id]
    fresh = [p for p in new.principles if p.id not in old.by_id]
    scored = sorted(((likeness(o, n), i, j) for (i, o), (j, n) in product(enumerate(gone), enumerate(fresh))),
                    key=lambda each: (-each[0], each[1], each[2]))  # fmt: skip
    found: dict[str, Principle] = {}
    for score, i, j in scored:
        if score >= ALIKE and fresh[j].id not in found and gone[i] not in found.values():
            found[fresh[j].id] = gone[i]
    return found


def likeness(one: Principle, other: Principle) -> float:
    """Return the share of words (0 to 1) that two principles have in common, in order; 1 where a part is the same."""
    if set(one.part_ids.items()) & set(other.part_ids.items()):
        return 1.0
    return _alike(_said(one), _said(other))


def _alike(one: str, other: str) -> float:
    return SequenceMatcher(None, _words(one), _words(other), autojunk=False).ratio()


def _said(principle: Principle) -> str:
    return " ".join(str(getattr(principle, part)) for part in PARTS if getattr(principle, part))


def _paired(old: Principle | None, new: Principle) -> PrincipleChange:
    if old is None:
        return PrincipleChange("added", None, new, _all_of(new, is_new=True))
    fields = tuple(_field_changes(old, new))
    kind: Kind = "renamed" if old.id != new.id else "changed" if fields else "same"
    return PrincipleChange(kind, old, new, fields)


def _field_changes(old: Principle, new: Principle) -> Iterator[FieldChange]:
    for name in FIELDS:
        before, after = _plain(old, name), _plain(new, name)
        if before != after:
            is_text = isinstance(before, str) and isinstance(after, str)
            shown = tuple(_examples(before or (), after or ())) if name == "tests" else ()
            yield FieldChange(name, before, after, tuple(words(before, after)) if is_text else (), shown)


def _examples(old: Sequence[dict[str, Any]], new: Sequence[dict[str, Any]]) -> Iterator[tuple[Piece, ...]]:
    """Yield the worked examples that differ: a new one beside the likest old one that is gone, or by itself."""
    # Each as one line that names its keys, and what it says without them.
    before, after = (
        {" | ".join(f"{k}: {v}" for k, v in t.items()): " ".join(t.values()) for t in s} for s in (old, new)
    )
    gone = [line for line in before if line not in after]
    for line, said in after.items():
        if line in before:
            continue
        likest = max(gone, key=lambda other, said=said: _alike(before[other], said), default=None)
        if likest is None or _alike(before[likest], said) < ALIKE:
            yield (("+", line),)
            continue
        gone.remove(likest)
        yield tuple(words(likest, line))
    yield from ((("-", line),) for line in gone)


def _all_of(principle: Principle, *, is_new: bool) -> tuple[FieldChange, ...]:
    values = ((name, _plain(principle, name)) for name in FIELDS if name != "tests")
    given = [(name, value) for name, value in values if value is not None]
    return tuple(FieldChange(name, *((None, value) if is_new else (value, None))) for name, value in given)


def _plain(principle: Principle, name: str) -> Any:
    """Return a field as JSON can say it, with nothing in it that means nothing."""
    value = getattr(principle, name)
    if name == "check" and value is not None:
        return value.content()
    if name == "domains":
        return sorted(value) if value else None
    if isinstance(value, tuple):
        return [item.model_dump(mode="json") for item in value] or None
    return value


def words(old: str, new: str) -> list[Piece]:
    """Return the word-level difference of two texts: the pieces of either side join to the whole text again."""
    before, after = _words(old), _words(new)
    pieces: list[Piece] = []
    for tag, i1, i2, j1, j2 in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        if tag == "equal":
            pieces.append(("=", "".join(before[i1:i2])))
            continue
        if i2 > i1:
            pieces.append(("-", "".join(before[i1:i2])))
        if j2 > j1:
            pieces.append(("+", "".join(after[j1:j2])))
    return pieces


def marked(pieces: Sequence[Piece]) -> str:
    """Return a difference as one text, `[-what went-]` and `{+what came+}`."""
    form = {"=": "{}", "-": "[-{}-]", "+": "{{+{}+}}"}
    return "".join(form[sign].format(text) for sign, text in pieces)


def _words(text: str) -> list[str]:
    """Return a text's words, each with the white space after it, so that a change of one is no change of all."""
    return re.findall(r"\S+\s*|\s+", text)
