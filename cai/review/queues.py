"""Two queues for review: one at random, that measures, and one where a look pays, that finds.

The **estimate** queue is drawn first, simple at random from the whole population; only it speaks for the judge as a
whole without weights. The **value** queue is drawn from what is left, at random within strata. Every comparison is in
exactly one stratum and every item keeps the probability with which it entered its queue, so that both together can be
weighted back to the population.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from cai import canon
from cai.errors import UserError
from cai.records import Judgment, Queue, ReviewItem
from cai.trail import Ended, RunView

STRATA = ("flagged", "order-inconsistent", "undecided", "principle-conflict", "low-margin", "rare-principle")
"""Strata of the value queue. A comparison is in the rarest that fits, the first of equally rare ones, so that what fits
nearly all, such as a conflict among a dozen principles, leaves no other empty; in `plain` where none fits."""
PLAIN = "plain"
ESTIMATE = 140
"""Items of the estimate queue where nobody says how many: they tell an accuracy near 0.9 to about 5 points."""
LOW_MARGIN = 0.1
"""A probability nearer to one half than this is a low margin."""
RARE = 0.05
"""A principle that votes on a smaller share of the comparisons than this is rare."""
REPEATS = 0.05
"""Share of the items that are put a second time, sides swapped."""


@dataclass(frozen=True, slots=True)
class Member:
    """One comparison that can be drawn."""

    comparison_id: str
    stratum: str
    principles: tuple[str, ...]
    """The principles due on it."""


def population(run: RunView, phases: Iterable[str] | None = None) -> list[Member]:
    """Return every comparison of these phases (None: all) that was judged, by id. Failed ones have no verdict."""
    strata, principles = Strata(), dict[str, tuple[str, ...]]()
    for phase in phases or run.phases:
        for end in run.ended(phase):
            strata.add(end)
            principles[end.comparison.id] = tuple(v.principle_id for v in end.settled.votes)
    return sorted((Member(id_, name, principles[id_]) for id_, name in strata.named()), key=lambda m: m.comparison_id)


class Strata:
    """Which stratum each comparison of a population is in. It looks at what the judge said, never at an override."""

    def __init__(self) -> None:
        self._fitting: dict[str, tuple[list[str], list[str]]] = {}

    def add(self, end: Ended) -> None:
        """Take a comparison into the population, unless it failed."""
        if end.settled.state != "failed":
            voting = [v.principle_id for v in end.settled.votes if v.stand == "votes"]
            self._fitting[end.comparison.id] = _fitting(end), voting

    def named(self) -> Iterator[tuple[str, str]]:
        """Yield each comparison's id and stratum."""
        votes = Counter(name for _, voting in self._fitting.values() for name in voting)
        rare = {name for name, n in votes.items() if n < RARE * len(self._fitting)}
        fitting = {
            id_: [*names, "rare-principle"] if rare.intersection(voting) else names
            for id_, (names, voting) in self._fitting.items()
        }
        sizes = Counter(name for names in fitting.values() for name in names)
        for id_, names in fitting.items():
            yield id_, min(names, key=lambda name: sizes[name], default=PLAIN)


def _fitting(end: Ended) -> list[str]:
    """Return the strata that a comparison fits by itself, in their order."""
    judgments = [d for d in end.standing if isinstance(d, Judgment)]
    voting = [v for v in end.settled.votes if v.stand == "votes" and v.p_a is not None]
    winners = {v.p_a > 0.5 for v in voting if not v.is_tie and v.p_a is not None}
    weight = sum(v.weight for v in voting)
    p_a = sum(v.weight * (v.p_a or 0.0) for v in voting) / weight if weight else None
    fits = {
        "flagged": any(j.flag for j in judgments),
        "order-inconsistent": _orders_differ(judgments),
        "undecided": p_a is None,
        "principle-conflict": len(winners) > 1,
        "low-margin": p_a is not None and abs(p_a - 0.5) < LOW_MARGIN,
    }
    return [name for name in STRATA if fits.get(name)]


def _orders_differ(judgments: Sequence[Judgment]) -> bool:
    verdicts: dict[str, set[str]] = {}
    for judgment in judgments:
        verdicts.setdefault(judgment.question_id, set()).add(judgment.verdict)
    return any(said >= {"a", "b"} for said in verdicts.values())


@dataclass(frozen=True, slots=True)
class Drawn:
    """A member in its queue."""

    member: Member
    queue: Queue
    inclusion: float


def draw(
    members: Sequence[Member],
    estimate: int,
    value: int,
    *,
    seed: int,
    taken: Mapping[str, set[str]],
) -> list[Drawn]:
    """Return the items of both queues.

    `taken` says what was drawn into which queue before: it is not drawn into the same queue again, and nothing that
    any queue has is drawn for value.
    """
    dice = random.Random(seed)
    free = [m for m in members if m.comparison_id not in taken.get("estimate", ())]
    if estimate > len(free):
        raise UserError(
            f"estimate {estimate}: only {len(free)} comparisons are left to draw from ({len(members)} were judged); "
            "ask for fewer"
        )
    chosen = dice.sample(free, estimate)
    drawn = [Drawn(m, "estimate", estimate / len(free)) for m in chosen]
    queued = {m.comparison_id for m in chosen}.union(*taken.values())
    by_stratum: dict[str, list[Member]] = {name: [] for name in STRATA}
    for member in free:
        if member.comparison_id not in queued and member.stratum in by_stratum:
            by_stratum[member.stratum].append(member)
    for name, n in shares({name: len(found) for name, found in by_stratum.items()}, value).items():
        found = by_stratum[name]
        drawn += [Drawn(m, "value", n / len(found)) for m in dice.sample(found, n)]
    return drawn


def shares(sizes: dict[str, int], n: int) -> dict[str, int]:
    """Return how many of `n` each stratum gets: equally many, as far as each has them. Empty strata get none."""
    given = dict.fromkeys(sizes, 0)
    left = n
    while left and (open_ := [name for name in sizes if given[name] < sizes[name]]):
        for name in open_[:left]:
            more = min(max(1, left // len(open_)), sizes[name] - given[name])
            given[name] += more
        left = n - sum(given.values())
    return {name: count for name, count in given.items() if count}


def items(
    drawn: Sequence[Drawn], draw_id: str, *, seed: int, by_principle: bool, repeats: float
) -> Iterator[ReviewItem]:
    """Yield the items of a drawing, and after them those that are put a second time."""
    made = []
    for d in drawn:
        principle, chance = None, d.inclusion
        if by_principle:
            ordered = sorted(d.member.principles, key=lambda p: canon.unit_interval(seed, d.member.comparison_id, p))
            principle, chance = ordered[0], d.inclusion / len(ordered)
        made.append(
            ReviewItem(
                draw_id=draw_id,
                queue=d.queue,
                comparison_id=d.member.comparison_id,
                principle_id=principle,
                stratum=d.member.stratum,
                inclusion=chance,
            )
        )
    yield from made
    again = sorted(made, key=lambda i: canon.unit_interval(seed, "repeat", i.id))[: round(repeats * len(made))]
    for item in again:
        yield item.model_copy(update={"repeats": item.id})
