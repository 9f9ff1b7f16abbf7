"""What a drawing appends: the draw itself, and the items of its queues."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from cai import canon
from cai.manifest import now
from cai.records import Draw, Event, ReviewItem
from cai.review import gold as golds
from cai.review import queues
from cai.review.book import Book
from cai.review.gold import Gold
from cai.review.queues import Member


def drawing(
    book: Book,
    members: Sequence[Member],
    gold: Sequence[Gold],
    *,
    estimate: int | None,
    value: int,
    author: str,
    seed: int,
    by_principle: bool,
    repeats: float,
) -> Iterator[Event]:
    """Yield a draw from a population and its items: both queues, repeats, gold; practice with the first draw only."""
    number = len(book.draws) + 1
    drawn_seed = canon.seed_of(seed, "review", number)
    population_id = canon.content_id("population", [m.comparison_id for m in members])
    earlier = {d.id for d in book.draws if d.population_id == population_id}
    before = [i for i in book.items.values() if i.draw_id in earlier]
    taken = {q: {i.comparison_id for i in before if i.queue == q} for q in ("estimate", "value")}
    if estimate is None:
        estimate = min(queues.ESTIMATE, len(members) - len(taken["estimate"]))
    drawn = queues.draw(members, estimate, value, seed=drawn_seed, taken=taken)
    sizes = Counter(m.stratum for m in members)
    draw = Draw(
        seed=drawn_seed,
        author=author,
        number=number,
        population=len(members),
        population_id=population_id,
        strata={name: sizes[name] for name in (*queues.STRATA, queues.PLAIN) if sizes[name]},
        queues={q: sum(d.queue == q for d in drawn) for q in ("estimate", "value")},
        time=now(),
    )
    yield draw
    yield from queues.items(drawn, draw.id, seed=drawn_seed, by_principle=by_principle, repeats=repeats)
    yield from golds.items(gold, draw.id, len(drawn), seed=drawn_seed, practise=number == 1, by_principle=by_principle)


def proposing(book: Book, wanted: Iterable[str], author: str) -> Iterator[Event]:
    """Yield a draw of no population and an item for every comparison that nobody reviews yet; nothing of none."""
    known = {i.comparison_id for i in book.items.values()}
    new = [id_ for id_ in wanted if id_ not in known]
    if not new:
        return
    draw = Draw(
        seed=0,
        author=author,
        number=len(book.draws) + 1,
        population=0,
        population_id=canon.content_id("population", sorted(new)),
        strata={},
        queues={"proposed": len(new)},
        time=now(),
    )
    yield draw
    for id_ in new:
        yield ReviewItem(
            draw_id=draw.id,
            queue="proposed",
            comparison_id=id_,
            principle_id=None,
            stratum="proposed",
            inclusion=None,
        )
