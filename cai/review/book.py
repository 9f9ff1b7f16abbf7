"""What reviews have written, folded: the items drawn, who says what of them now, and what was taken back."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

from cai.records import Draw, Label, Override, Reveal, ReviewItem, Vote, Withdrawal
from cai.store import ledger

LABELS: dict[str, Label] = {"a": "a", "b": "b", "tie": "tie", "both_bad": "tie"}
"""What a choice says about the pair. Two bad answers are a tie; `cannot_judge` and `skip` say nothing."""


class Book:
    """The present of all reviews of one run. `refresh` reads what was appended since it last looked."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._seq = -1
        self.draws: list[Draw] = []
        self.items: dict[str, ReviewItem] = {}
        """Every item by id, in the order drawn."""
        self.votes: list[Vote] = []
        """Every vote ever cast, in order."""
        self.withdrawn: dict[str, Withdrawal] = {}
        """What was taken back, by the id of the vote or override."""
        self.overrides: dict[str, list[Override]] = {}
        """Every override ever made, by comparison."""
        self.revealed: set[tuple[str, str]] = set()
        """(reviewer, comparison) of every verdict shown."""
        self._by_item: dict[tuple[str, str], list[Vote]] = {}
        self._by_comparison: dict[str, list[Vote]] = {}
        self.refresh()

    def refresh(self) -> Book:
        """Read what is new and return this book."""
        for seq, event in ledger.events(self._connection, after=self._seq):
            self._seq = seq
            match event:
                case Draw():
                    self.draws.append(event)
                case ReviewItem():
                    self.items[event.id] = event
                case Vote():
                    self.votes.append(event)
                    self._by_item.setdefault((event.reviewer, event.item_id), []).append(event)
                    self._by_comparison.setdefault(event.comparison_id, []).append(event)
                case Withdrawal():
                    self.withdrawn[event.withdraws] = event
                case Override():
                    self.overrides.setdefault(event.comparison_id, []).append(event)
                case Reveal():
                    self.revealed.add((event.reviewer, event.comparison_id))
        return self

    def vote(self, reviewer: str, item_id: str) -> Vote | None:
        """Return what a reviewer says of an item now, or None."""
        standing = [v for v in self._by_item.get((reviewer, item_id), ()) if v.id not in self.withdrawn]
        return standing[-1] if standing else None

    def standing(self, reviewer: str | None = None) -> Iterator[Vote]:
        """Yield the votes that hold now, one per reviewer and item, in the order in which they were cast."""
        for vote in self.votes:
            if reviewer in (None, vote.reviewer) and self._holds(vote):
                yield vote

    def _holds(self, vote: Vote) -> bool:
        return self.vote(vote.reviewer, vote.item_id) is vote

    @property
    def reviewers(self) -> list[str]:
        """Everybody who has voted, by name."""
        return sorted({v.reviewer for v in self.votes})

    def override(self, comparison_id: str) -> Override | None:
        """Return the override that holds for a comparison, or None."""
        standing = [o for o in self.overrides.get(comparison_id, ()) if o.id not in self.withdrawn]
        return standing[-1] if standing else None

    def opinions(self, comparison_id: str) -> dict[str, Vote]:
        """Return each reviewer's latest standing vote on the whole pair, by reviewer; repeats only measure."""
        found = {}
        for vote in self._by_comparison.get(comparison_id, ()):
            item = self.items.get(vote.item_id)
            if item is None or item.gold or item.principle_id or item.repeats or vote.choice == "skip":
                continue
            if self._holds(vote):
                found[vote.reviewer] = vote
        return found

    def agreed_label(self, comparison_id: str) -> tuple[Label | None, list[Vote]]:
        """Return (label, votes) of the people who say which answer is better; the label is None unless all agree."""
        told = [v for v in self.opinions(comparison_id).values() if v.choice in LABELS]
        labels = {LABELS[v.choice] for v in told}
        return (labels.pop() if len(labels) == 1 else None), told

    def dispute(self, comparison_id: str) -> list[Vote]:
        """Return the votes on a comparison that say which answer is better and contradict each other, or none."""
        label, told = self.agreed_label(comparison_id)
        return told if label is None and len(told) > 1 else []

    def disputes(self) -> list[str]:
        """Return the comparisons of which people say different things and nobody has decided outright."""
        return [id_ for id_ in self._by_comparison if self._is_disputed(id_)]

    def _is_disputed(self, comparison_id: str) -> bool:
        held = self.override(comparison_id)
        return bool(self.dispute(comparison_id)) and (held is None or bool(held.votes))
