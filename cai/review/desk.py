"""The desk at which people review a run, blind: it puts items before them and keeps what they say.

    desk = Desk("runs/quickstart")
    desk.draw(estimate=140, value=60, author="ann")
    shown = desk.next("ann")                                  # the prompt, a left and a right answer; nothing else
    desk.vote("ann", shown.item_id, "left", confidence=3)
    desk.reveal("ann", shown.item_id)                         # only after the vote: what the judge had said

Which arm stands on the left is decided per reviewer and item by a keyed hash whose key lies beside the runs, so that
nothing shown tells it and a reload shows the same sides. Everything is appended to the run's ledger in one
transaction, so that people can review while the run is still going.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Self

from cai import canon
from cai.errors import UserError
from cai.manifest import now
from cai.records import Choice, Draw, Event, Message, Order, Override, Reveal, ReviewItem, Vote, Withdrawal
from cai.review import gold as golds
from cai.review import people, queues
from cai.review.book import LABELS, Book
from cai.review.drawing import drawing, proposing
from cai.store import ledger, schema
from cai.templates import Fence
from cai.trail import RunView

Side = Literal["left", "right", "tie", "both_bad", "cannot_judge", "skip"]
SIDES: tuple[Side, ...] = ("left", "right", "tie", "both_bad", "cannot_judge", "skip")
_LONGEST_NAME = 80


@dataclass(frozen=True, slots=True)
class Shown:
    """An item as a reviewer may see it before voting: no arm, no source, no verdict, no queue."""

    item_id: str
    messages: tuple[Message, ...]
    """The conversation."""
    left: str
    """One answer, byte for byte."""
    right: str
    """The other answer."""
    question: str
    """What is asked of the reviewer."""
    principle: str | None
    """Title of the one principle that is asked about; None where it is the whole pair."""
    is_practice: bool
    """Whether this is practice, with the answer told after the vote."""
    done: int
    """Items this reviewer has voted on in this part (practice, or the queue)."""
    total: int
    """Items of this part."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return asdict(self) | {"messages": [m.model_dump() for m in self.messages]}


class Desk:
    """One run, open for review. Safe to share between threads."""

    def __init__(self, folder: str | Path) -> None:
        self.run = RunView(folder)
        self._connection = schema.connect(self.run.folder / "store.sqlite")
        self._fence = Fence.beside(self.run.folder)
        self._lock = threading.RLock()
        self._book: Book | None = None

    def close(self) -> None:
        """Close the store."""
        self.run.close()
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def book(self) -> Book:
        """The present of all reviews."""
        with self._lock:
            if self._book is None:
                self._book = Book(self._connection)
            return self._book.refresh()

    def _append(self, events: Callable[[Book], Iterable[Event]]) -> list[Event]:
        """Append what `events` yields, which reads the book inside the same transaction, and return it."""
        made: list[Event] = []

        def inside() -> Iterator[Event]:
            for event in events(self.book):
                made.append(event)
                yield event

        with self._lock:
            try:
                ledger.append_now(self._connection, inside())
            except BaseException:
                self._book = None  # it may have read what was then rolled back
                raise
        return made

    # -- drawing -----------------------------------------------------------------------------------------------------

    def draw(
        self,
        *,
        estimate: int | None,
        value: int,
        author: str,
        seed: int | None = None,
        phases: Iterable[str] | None = None,
        by_principle: bool = False,
        repeats: float = queues.REPEATS,
        gold: str | Path | None = None,
    ) -> Draw:
        """Draw both queues and return the drawing. `seed` None takes the run's; `gold` is a file of gold pairs.

        `estimate` None draws queues.ESTIMATE, or all where there are fewer; the value queue takes what there is.

        Drawing again from the same population adds comparisons that are not in the estimate queue yet.
        """
        author = reviewer_name(author)
        members = queues.population(self.run, phases)
        if not members:
            raise UserError(f"{self.run.folder}: no comparison was judged yet; draw once the run has judged some")
        known = golds.of_file(gold, self.run.constitution) if gold else golds.of_constitution(self.run.constitution)
        made = self._append(
            lambda book: drawing(
                book,
                members,
                known,
                estimate=estimate,
                value=value,
                author=author,
                seed=self.run.config.run.seed if seed is None else seed,
                by_principle=by_principle,
                repeats=repeats,
            )
        )
        return next(event for event in made if isinstance(event, Draw))

    def propose(self, comparison_ids: Iterable[str], author: str) -> list[ReviewItem]:
        """Put comparisons that were not drawn by chance (near duplicates of an override, say) into the queue.

        Returns the new items; a comparison that has one already gets no second.
        """
        author, wanted = reviewer_name(author), list(comparison_ids)
        made = self._append(lambda book: proposing(book, wanted, author))
        return [event for event in made if isinstance(event, ReviewItem)]

    # -- one reviewer ------------------------------------------------------------------------------------------------

    def next(self, reviewer: str) -> Shown | None:
        """Return the next item for a reviewer, the skipped ones last; None when nothing is left.

        The same item comes again until it is voted on, with the same sides.
        """
        reviewer, book = reviewer_name(reviewer), self.book
        waiting = self.waiting(reviewer)
        if waiting:
            return self._shown(waiting[0], reviewer, book)
        skipped = [v for v in book.standing(reviewer) if v.choice == "skip" and v.item_id in book.items]
        return self._shown(book.items[skipped[0].item_id], reviewer, book) if skipped else None

    def waiting(self, reviewer: str) -> list[ReviewItem]:
        """Return the items a reviewer has not voted on or skipped, in this reviewer's order."""
        book = self.book
        return [i for i in self._ordered(reviewer, book) if book.vote(reviewer, i.id) is None]

    def show(self, reviewer: str, item_id: str) -> Shown:
        """Return one item as this reviewer sees it."""
        book = self.book
        return self._shown(self._item(item_id, book), reviewer_name(reviewer), book)

    def vote(
        self,
        reviewer: str,
        item_id: str,
        side: str,
        *,
        confidence: int | None = None,
        reason: str = "",
        duration_s: float | None = None,
        shown: Order | None = None,
        imported: str | None = None,
    ) -> Vote:
        """Keep a reviewer's vote by side (`left`, `right`, `tie`, `both_bad`, `cannot_judge`, `skip`) and return it.

        An item that this reviewer has voted on is refused (undo first), except where it was skipped. `shown` and
        `imported` are for votes cast elsewhere. What follows for the label is appended with it.
        """
        reviewer = reviewer_name(reviewer)
        if side not in SIDES:
            raise UserError(f"vote '{side}': expected one of {', '.join(SIDES)}")
        if confidence not in (None, 1, 2, 3):
            raise UserError(f"confidence {confidence!r}: expected 1 (unsure), 2 or 3 (sure), or none")

        def voting(book: Book) -> Iterator[Event]:
            item = self._item(item_id, book)
            before = book.vote(reviewer, item_id)
            if before is not None and before.choice != "skip":
                raise UserError(f"'{reviewer}' has voted on this item already; undo that vote first")
            if imported is None and item.queue != "practice" and self._practising(reviewer, book):
                raise UserError(f"'{reviewer}' has not finished the practice round; vote on its items first")
            order = shown or self.sides(reviewer, item, book)
            yield Vote(
                item_id=item_id,
                comparison_id=item.comparison_id,
                reviewer=reviewer,
                number=1 + sum(v.reviewer == reviewer for v in book.votes),
                choice=choice_of(side, order),
                shown=order,
                confidence=confidence,
                reason=reason.strip(),
                blind=(reviewer, item.comparison_id) not in book.revealed,
                imported=imported,
                time=now(),
                duration_s=duration_s,
            )
            yield from self._consequences(item, reviewer)

        return next(event for event in self._append(voting) if isinstance(event, Vote))

    def undo(self, reviewer: str) -> Shown | None:
        """Take back this reviewer's latest vote and return its item; None where there is none. May be repeated."""
        reviewer = reviewer_name(reviewer)
        undone: list[str] = []

        def undoing(book: Book) -> Iterator[Event]:
            standing = list(book.standing(reviewer))
            if not standing:
                return
            last = standing[-1]
            undone.append(last.item_id)
            yield Withdrawal(comparison_id=last.comparison_id, withdraws=last.id, author=reviewer, time=now())
            yield from self._consequences(self._item(last.item_id, book), reviewer)

        self._append(undoing)
        return self.show(reviewer, undone[0]) if undone else None

    def reveal(self, reviewer: str, item_id: str) -> dict[str, Any]:
        """Return what stands behind an item that this reviewer has voted on, and record that it was shown.

        For practice: `expected` side, whether it `agrees`, and `why`. For items that measure the reviewer (gold,
        repeats and what is repeated) nothing is told: {"withheld": True}. Otherwise the judge's verdict by sides.
        """
        reviewer, book = reviewer_name(reviewer), self.book
        item, vote = self._item(item_id, book), book.vote(reviewer, item_id)
        if vote is None or vote.choice == "skip":
            raise UserError("the judge's verdict is shown after the vote; vote first")
        left = vote.shown[0]
        if item.gold and item.queue == "practice":
            agrees = LABELS.get(vote.choice) == item.gold.expect
            expected = people.side_of(item.gold.expect, left)
            return {"practice": True, "expected": expected, "agrees": agrees, "why": item.gold.why}
        repeated = {i.repeats for i in book.items.values()}
        if item.gold or item.repeats or item.id in repeated:
            return {"withheld": True}
        self._append(
            lambda _: [Reveal(comparison_id=item.comparison_id, item_id=item_id, reviewer=reviewer, time=now())]
        )
        return {"vote": people.side_of(LABELS.get(vote.choice), left)} | people.what_the_judge_said(
            self.run, item.comparison_id, left
        )

    def progress(self, reviewer: str) -> dict[str, int]:
        """Return how far a reviewer is: `done`, `skipped`, `left`, `total`, and `practice_left`."""
        reviewer, book = reviewer_name(reviewer), self.book
        ordered = self._ordered(reviewer, book)
        votes = {i.id: book.vote(reviewer, i.id) for i in ordered}
        real = [votes[i.id] for i in ordered if i.queue != "practice"]
        skipped = sum(v is not None and v.choice == "skip" for v in real)
        done = sum(v is not None for v in real) - skipped
        practice_left = sum(votes[i.id] is None for i in ordered if i.queue == "practice")
        total = len(real)
        return {"done": done, "skipped": skipped, "left": total - done, "total": total, "practice_left": practice_left}

    def sides(self, reviewer: str, item: ReviewItem, book: Book) -> Order:
        """Return `ab` where arm a stands on the left for this reviewer.; a repeat is its first time swapped."""
        if item.repeats is not None:
            first = book.vote(reviewer, item.repeats)
            before = first.shown if first else self.sides(reviewer, book.items[item.repeats], book)
            return "ba" if before == "ab" else "ab"
        return "ab" if self._fence.chance(["side", reviewer, item.id]) < 0.5 else "ba"

    # -- deciding outright -------------------------------------------------------------------------------------------

    def override(self, comparison_id: str, label: str, *, author: str, reason: str, blind: bool = False) -> Override:
        """Append a label that somebody decides outright, over judge and votes; the reason is required.

        Where reviewers say different things of the pair, it is recorded that this settles it between their votes.
        """
        author = reviewer_name(author)
        if label not in ("a", "b", "tie"):
            raise UserError(f"label '{label}': expected a, b or tie (the arms as `cai audit why` names them)")
        if not reason.strip():
            raise UserError("an override needs a reason; say why in a few words")
        if getattr(self.run.record(comparison_id), "tag", "") != "comparison":
            raise UserError(f"'{comparison_id}': no such pair in {self.run.folder}; `cai pairs` lists their ids")

        def deciding(book: Book) -> Iterator[Event]:
            earlier = book.overrides.get(comparison_id, [])
            yield Override(
                comparison_id=comparison_id,
                label=label,  # type: ignore[arg-type]
                author=author,
                reason=reason.strip(),
                blind=blind,
                supersedes=earlier[-1].id if earlier else None,
                settles=tuple(v.id for v in book.dispute(comparison_id)),
                time=now(),
            )

        return next(event for event in self._append(deciding) if isinstance(event, Override))

    def withdraw(self, comparison_id: str, *, author: str, reason: str) -> None:
        """Take the override of a comparison back; what follows from the votes holds again. Raises UserError."""
        author = reviewer_name(author)

        def withdrawing(book: Book) -> Iterator[Event]:
            held = book.override(comparison_id)
            if held is None:
                raise UserError(f"'{comparison_id}': nothing overrides this pair's label")
            yield Withdrawal(
                comparison_id=comparison_id, withdraws=held.id, author=author, reason=reason.strip(), time=now()
            )
            book.refresh()
            yield from people.consequences(self.run, book, comparison_id, author)

        self._append(withdrawing)

    def disputes(self) -> list[dict[str, Any]]:
        """Return the comparisons of which reviewers say different things: `comparison_id` and who said what."""
        book = self.book
        return [
            {"comparison_id": id_, "votes": {r: v.choice for r, v in sorted(book.opinions(id_).items())}}
            for id_ in book.disputes()
        ]

    # -- inside ------------------------------------------------------------------------------------------------------

    def _consequences(self, item: ReviewItem, author: str) -> Iterator[Event]:
        if item.gold is None and item.principle_id is None and item.repeats is None:
            yield from people.consequences(self.run, self.book, item.comparison_id, author)

    def _item(self, item_id: str, book: Book) -> ReviewItem:
        if item_id not in book.items:
            raise UserError(f"'{item_id}': no such review item in {self.run.folder}")
        return book.items[item_id]

    def _practising(self, reviewer: str, book: Book) -> bool:
        return any(i.queue == "practice" and book.vote(reviewer, i.id) is None for i in book.items.values())

    def _ordered(self, reviewer: str, book: Book) -> list[ReviewItem]:
        """Return all items in this reviewer's order: practice, then draw by draw in an order of chance.

        A beginning of the order is a random part of every queue; a repeat comes after its first time.
        """
        numbers = {d.id: d.number for d in book.draws}

        def place(item: ReviewItem) -> tuple[bool, int, float]:
            drawn = self._fence.chance(["order", reviewer, item.id])
            if item.repeats is not None:
                first = self._fence.chance(["order", reviewer, item.repeats])
                drawn = first + (1 - first) * (0.3 + 0.7 * drawn)
            return item.queue != "practice", numbers[item.draw_id], drawn

        return sorted(book.items.values(), key=place)

    def _shown(self, item: ReviewItem, reviewer: str, book: Book) -> Shown:
        messages, a, b = self.texts(item)
        left, right = (a, b) if self.sides(reviewer, item, book) == "ab" else (b, a)
        progress = self.progress(reviewer)
        is_practice = item.queue == "practice"
        n_practice = sum(i.queue == "practice" for i in book.items.values())
        done, total = progress["done"], progress["total"]
        if is_practice:
            done, total = n_practice - progress["practice_left"], n_practice
        title = self.run.constitution[item.principle_id].title if item.principle_id else None
        return Shown(item.id, messages, left, right, self.question(item), title, is_practice, done, total)

    def question(self, item: ReviewItem) -> str:
        """Return what is asked of the reviewer."""
        if item.principle_id is None:
            return "Which answer is better?"
        principle = self.run.constitution[item.principle_id]
        if principle.compare is None:
            return f"Which answer is better by this principle: {principle.title}?"
        # It is put to the judge in letters; what stands before a person is the first (left) and the second (right).
        return f"{principle.compare} (A is the first answer, B the second.)"

    def token(self, item_id: str, order: Order) -> str:
        """Return the opaque token that stands for an item shown in this order in another tool."""
        return self._fence.of([canon.dumps(["token", item_id, order]).decode()])

    def texts(self, item: ReviewItem) -> tuple[tuple[Message, ...], str, str]:
        """Return (conversation, arm a, arm b) of an item."""
        if item.gold is not None:
            return item.gold.prompt, item.gold.a, item.gold.b
        comparison = self.run.record(item.comparison_id)
        prompt = self.run.record(comparison.prompt_id)
        return prompt.messages, self.run.record(comparison.a_id).text, self.run.record(comparison.b_id).text


def choice_of(side: str, shown: Order) -> Choice:
    """Return the choice that a side means when the arms stood in this order."""
    if side in ("left", "right"):
        return shown[0 if side == "left" else 1]  # type: ignore[return-value]
    return side  # type: ignore[return-value]


def reviewer_name(name: str) -> str:
    """Return a reviewer's name as it is kept. Raises UserError for one that is empty, long or not printable."""
    name = name.strip()
    if not name or len(name) > _LONGEST_NAME or not name.isprintable():
        raise UserError(f"reviewer {name[:_LONGEST_NAME]!r}: expected a name of 1 to {_LONGEST_NAME} printable signs")
    return name
