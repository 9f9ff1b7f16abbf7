"""A stratified sample of a run's comparisons, drawn by hash in one pass, so that the same run gives the same sample."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from heapq import heappush, heapreplace
from typing import NamedTuple

from cai import canon
from cai.trail import Ended


class Stratum(NamedTuple):
    """What comparisons of one stratum have in common."""

    phase: str
    source: str
    domain: str
    ended: str
    """The label it has, or the state it ended in where it has none."""


def stratum_of(end: Ended) -> Stratum:
    """Return the stratum of a comparison."""
    return Stratum(
        end.comparison.phase, end.comparison.source, end.prompt.domain, end.settled.label or end.settled.state
    )


class Drawn:
    """A sample that is drawn while the comparisons pass by: of each stratum at most `size` are held."""

    def __init__(self, size: int, seed: int) -> None:
        self.size, self.seed = size, seed
        self.seen: Counter[Stratum] = Counter()
        self._held: dict[Stratum, list[tuple[float, str, Ended]]] = {}

    def add(self, end: Ended) -> None:
        """Count a comparison, and hold it if it is among the first by hash."""
        stratum = stratum_of(end)
        self.seen[stratum] += 1
        held = self._held.setdefault(stratum, [])
        # Negated, so that the heap's smallest is the one to let go.
        item = (-canon.unit_interval(self.seed, "sample", end.comparison.id), end.comparison.id, end)
        if len(held) < self.size:
            heappush(held, item)
        elif item[0] > held[0][0]:
            heapreplace(held, item)

    def sample(self) -> list[Ended]:
        """Return the sample: strata in proportion to their size, each comparison at most once, in a fixed order."""
        shares = allot(self.seen, self.size)
        chosen = [end for stratum, n in shares.items() for _, _, end in sorted(self._held[stratum], reverse=True)[:n]]
        return sorted(chosen, key=lambda end: (end.comparison.phase, end.position, end.comparison.id))


def allot(sizes: Counter[Stratum], n: int) -> dict[Stratum, int]:
    """Return how many of `n` places each stratum gets: in proportion, by largest remainder, none above its size."""
    total = sum(sizes.values())
    if total <= n:
        return dict(sizes)
    exact = {stratum: n * size / total for stratum, size in sizes.items()}
    places = {stratum: int(share) for stratum, share in exact.items()}
    left = n - sum(places.values())
    for stratum in sorted(exact, key=lambda s: (places[s] - exact[s], s))[:left]:
        places[stratum] += 1
    return places


def drawn_from(ends: Iterable[Ended], size: int, seed: int) -> Drawn:
    """Return the sample drawn from these comparisons."""
    drawn = Drawn(size, seed)
    for end in ends:
        drawn.add(end)
    return drawn
