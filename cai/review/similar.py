"""Near duplicates of pairs whose label people changed: what was wrong once is likely wrong there too."""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from cai.review.book import Book
from cai.trail import Ended, RunView

THRESHOLD = 0.6
"""Shared word triples over all triples of both pairs (Jaccard) from which two pairs count as near duplicates."""


class Similar(NamedTuple):
    """A pair that resembles an overridden one."""

    comparison_id: str
    overlap: float
    """0 to 1."""
    like: str
    """The overridden pair."""
    label: str
    """What people said of that one."""


def similar(run: RunView, book: Book, *, threshold: float = THRESHOLD) -> list[Similar]:
    """Return pairs that nobody reviews yet and that resemble one people overrode, the most alike first."""
    overridden = {id_ for id_ in book.overrides if book.override(id_)}
    if not overridden:
        return []
    known = overridden | {i.comparison_id for i in book.items.values()}
    ends = [e for phase in run.phases for e in run.ended(phase)]
    triples = {e.comparison.id: _triples(e) for e in ends}
    found = []
    for end in ends:
        if end.comparison.id in known:
            continue
        ours = triples[end.comparison.id]
        alike = (id_ for id_ in overridden if not ours.keys().isdisjoint(triples.get(id_, ())))
        near = ((_overlap(ours, triples[id_]), id_) for id_ in alike)
        overlap, like = max(near, default=(0.0, ""))
        held = book.override(like) if overlap >= threshold else None
        if held is not None:
            found.append(Similar(end.comparison.id, overlap, like, held.label))
    return sorted(found, key=lambda s: (-s.overlap, s.comparison_id))


def _triples(end: Ended) -> Counter[tuple[str, ...]]:
    """Return the word triples of the conversation and both answers, each side for itself."""
    counted: Counter[tuple[str, ...]] = Counter()
    for text in (*(m.content for m in end.prompt.messages), end.arms[0].text, end.arms[1].text):
        words = ["", *re.findall(r"\w+", text.lower()), ""]
        counted.update({tuple(words[i : i + 3]): 1 for i in range(max(1, len(words) - 2))})
    return counted


def _overlap(one: Counter[tuple[str, ...]], other: Counter[tuple[str, ...]]) -> float:
    shared, whole = (one & other).total(), (one | other).total()
    return shared / whole if whole else 0.0
