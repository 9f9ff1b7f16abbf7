"""What the reviews say: the judge against people, people among themselves, and how often the judge is right.

The headline is the judge's accuracy from the estimate queue alone, which was drawn at random from the whole
population. Both queues together give the stratum-weighted accuracy. An unweighted figure of mixed queues is never
given. Only blind first-time votes count; repeats and gold items measure the reviewers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cai import canon
from cai.evaluate.agreement import AC1, ALPHA, FLEISS, KAPPA, OBSERVED, agreement
from cai.evaluate.intervals import LEVEL
from cai.records import Draw, Label, Override, ReviewItem, Vote
from cai.review import estimate, people
from cai.review.book import LABELS, Book
from cai.review.estimate import Share, Stratum
from cai.stages.settle import settle
from cai.trail import RunView

_LABELS: tuple[Label, ...] = ("a", "b", "tie")


@dataclass(frozen=True, slots=True)
class Reviewed:
    """One comparison that people have voted on blind, and what the judge says of it."""

    item: ReviewItem
    prompt_id: str
    source: str
    human: Label | None
    """What people say: all alike, the most of them, or the label decided outright and blind; else None."""
    judge: Label | None
    """What the judge says, overrides left aside; None where it abstained or could not be read."""
    said: dict[str, Label]
    """Each reviewer's label."""


def report(run: RunView, *, book: Book | None = None, seed: int | None = None) -> dict[str, Any]:
    """Return everything the reviews of a run say, as JSON can say it; what nobody looked at is None or empty."""
    book = book or Book(run.connection)
    drawn = seed if seed is not None else canon.seed_of(run.config.run.seed, "agreement")
    draw = current_draw(book)
    pairs = list(reviewed(run, book, draw))
    whole = [r for r in pairs if r.item.principle_id is None]
    return {
        "run": str(run.folder),
        "level": LEVEL,
        "draw": _draw(book, draw, run),
        "reviewers": book.reviewers,
        "votes": _votes(book),
        "accuracy": accuracy(whole),
        "weighted": _share(_weighted(whole, draw)),
        "rate": _rate(run, whole, draw),
        "judge_and_people": _judge_and_people(whole, drawn),
        "by_stratum": _by_stratum(whole),
        "by_principle": _by_principle(pairs, drawn),
        "people": _people(pairs, drawn),
        "disputes": len(book.disputes()),
        "repeats": list(_repeats(book)),
        "gold": list(_gold(book)),
        "overrides": len([id_ for id_ in book.overrides if book.override(id_)]),
    }


def headline(run: RunView, book: Book | None = None) -> Share | None:
    """Return the judge's accuracy from the estimate queue; None without votes. The gate looks at its lower end."""
    book = book or Book(run.connection)
    return _accuracy([r for r in reviewed(run, book, current_draw(book)) if r.item.principle_id is None])


def current_draw(book: Book) -> Draw | None:
    """Return the last drawing from a population. Estimates speak of its population."""
    drawn = [d for d in book.draws if d.population]
    return drawn[-1] if drawn else None


def reviewed(run: RunView, book: Book, draw: Draw | None) -> Iterator[Reviewed]:
    """Yield the first-time items of the current population that have a blind vote saying which answer is better."""
    same = {d.id for d in book.draws if draw is not None and d.population_id == draw.population_id}
    votes: dict[str, dict[str, Vote]] = {}
    for vote in book.standing():
        if vote.blind and vote.choice in LABELS:
            votes.setdefault(vote.item_id, {})[vote.reviewer] = vote
    for item in book.items.values():
        if item.draw_id in same and item.gold is None and item.repeats is None and item.id in votes:
            said = {reviewer: LABELS[v.choice] for reviewer, v in votes[item.id].items()}
            comparison = run.record(item.comparison_id)
            human = _human(said, None if item.principle_id else book.override(item.comparison_id))
            judge = _judge(run, item)
            yield Reviewed(item, comparison.prompt_id, comparison.source, human, judge, said)


def _human(said: dict[str, Label], held: Override | None) -> Label | None:
    """Return what people say together: the most frequent label; where there is none, one decided outright and blind."""
    counted = Counter(said.values()).most_common(2)
    if len(counted) == 1 or counted[0][1] > counted[1][1]:
        return counted[0][0]
    return held.label if held is not None and held.blind and not held.votes else None


def _judge(run: RunView, item: ReviewItem) -> Label | None:
    said = people.judged(run, item.comparison_id)
    if item.principle_id is None:
        return said.label
    for vote in said.votes:
        if vote.principle_id == item.principle_id and vote.stand == "votes" and vote.p_a is not None:
            return "tie" if vote.is_tie else "a" if vote.p_a > 0.5 else "b"
    return None


# -- how often the judge is right ------------------------------------------------------------------------------------


def _decided(pairs: Iterable[Reviewed], *queues: str) -> list[Reviewed]:
    return [r for r in pairs if r.human and r.judge and r.item.queue in queues]


def _accuracy(pairs: Sequence[Reviewed]) -> Share | None:
    found = _decided(pairs, "estimate")
    return estimate.share(sum(r.human == r.judge for r in found), len(found))


def accuracy(pairs: Sequence[Reviewed]) -> dict[str, Any] | None:
    """Return the headline with what it leaves out: items the judge did not decide and items people divide on."""
    found = _accuracy(pairs)
    if found is None:
        return None
    looked_at = [r for r in pairs if r.item.queue == "estimate"]
    return found.as_dict() | {
        "judge_undecided": sum(r.judge is None for r in looked_at),
        "people_divided": sum(r.human is None for r in looked_at),
    }


def _weighted(pairs: Sequence[Reviewed], draw: Draw | None) -> Share | None:
    """Return the accuracy of both queues; a stratum's size counts by the share of it that could be compared."""
    strata = {}
    for name, size in (draw.strata if draw else {}).items():
        looked_at = [r for r in pairs if r.item.stratum == name and r.item.queue in ("estimate", "value")]
        found = _decided(looked_at, "estimate", "value")
        usable = len(found) / len(looked_at) if looked_at else 1.0
        strata[name] = Stratum(round(size * usable), len(found), sum(r.human == r.judge for r in found))
    return estimate.weighted(strata) if any(s.n for s in strata.values()) else None


def _rate(run: RunView, pairs: Sequence[Reviewed], draw: Draw | None) -> dict[str, Any] | None:
    """Return how often people find the revision the better answer: from their labels, and powered by the judge's."""
    found = [r for r in _decided(pairs, "estimate") if r.source == "revision"]
    if not found or draw is None:
        return None
    ours = {r.item.comparison_id for r in found}
    value = {"a": 0.0, "tie": 0.5, "b": 1.0}
    human, judge = [value[r.human or "tie"] for r in found], [value[r.judge or "tie"] for r in found]
    differ = sum(y != f for y, f in zip(human, judge, strict=True))
    why_not = estimate.why_not_powered(len(found), differ)
    plain = estimate.mean_share(human)
    told = {"what": "people find the revision better", "people": _share(plain), "powered": None, "why_not": why_not}
    if why_not is None:
        rest = [value[label] for id_, label in judge_labels(run, "revision") if label is not None and id_ not in ours]
        if len(rest) < len(found):
            return told | {"why_not": "most of the population was looked at by people, so the judge adds nothing"}
        middle, low, high = estimate.powered(human, judge, rest)
        told["powered"] = {"value": middle, "low": low, "high": high, "n": len(human), "n_judged": len(rest)}
    return told


def judge_labels(run: RunView, source: str) -> Iterator[tuple[str, Label | None]]:
    """Yield (comparison id, the judge's label) of every comparison of a source, overrides left aside."""
    rules = run.config.judge
    for phase in run.phases:
        for end in run.ended(phase):
            if end.comparison.source != source:
                continue
            if end.settled.label_source == "judge":
                yield end.comparison.id, end.settled.label
            else:
                kept = [d for d in end.decisions if not isinstance(d, Override)]
                due = run.due(end.comparison, end.prompt.domain)
                again = settle(
                    end.comparison.id,
                    kept,
                    due,
                    on_disagreement=rules.on_disagreement,
                    tie_margin=rules.tie_margin,
                )
                yield end.comparison.id, again.label


# -- agreement -------------------------------------------------------------------------------------------------------


def _judge_and_people(pairs: Sequence[Reviewed], seed: int) -> dict[str, Any] | None:
    """Return the judge against people on the estimate queue; other queues were chosen for being hard."""
    found = [r for r in pairs if r.item.queue == "estimate"]
    if not _decided(found, "estimate"):
        return None
    ratings = [(r.judge, r.human) for r in found]
    clusters = [r.prompt_id for r in found]
    told = agreement(ratings, clusters=clusters, labels=_LABELS, seed=seed)
    alpha = ALPHA.estimate(ratings, clusters=clusters, labels=_LABELS, seed=seed)
    return told | {"alpha": alpha.as_dict() if alpha else None}


def _by_stratum(pairs: Sequence[Reviewed]) -> list[dict[str, Any]]:
    told = []
    for name in dict.fromkeys(r.item.stratum for r in pairs):
        found = [r for r in pairs if r.item.stratum == name and r.human and r.judge]
        counted = estimate.share(sum(r.human == r.judge for r in found), len(found))
        told.append({"stratum": name, "n": len(found), "accuracy": _share(counted)})
    return told


def _by_principle(pairs: Sequence[Reviewed], seed: int) -> list[dict[str, Any]]:
    told = []
    for name in dict.fromkeys(r.item.principle_id for r in pairs if r.item.principle_id):
        found = [r for r in _decided(pairs, "estimate") if r.item.principle_id == name]
        ratings = [(r.judge, r.human) for r in found]
        clusters = [r.prompt_id for r in found]
        told.append({"principle": name} | agreement(ratings, clusters=clusters, labels=_LABELS, seed=seed))
    return told


def _people(pairs: Sequence[Reviewed], seed: int) -> dict[str, Any] | None:
    """Return how far the reviewers agree on items that two or more of them voted on: the ceiling for any judge."""
    names = sorted({name for r in pairs for name in r.said})
    shared = [r for r in pairs if len(r.said) > 1]
    if not shared:
        return None
    ratings = [[r.said.get(name) for name in names] for r in shared]
    clusters = [r.prompt_id for r in shared]
    coefficients = {"observed": OBSERVED, "ac1": AC1, "alpha": ALPHA, "fleiss": FLEISS}
    if len(names) == 2:
        coefficients["kappa"] = KAPPA
    told: dict[str, Any] = {"reviewers": names, "n": len(shared)}
    for name, coefficient in coefficients.items():
        found = coefficient.estimate(ratings, clusters=clusters, labels=_LABELS, seed=seed)
        told[name] = found.as_dict() if found else None
    told["pairs"] = [_two(shared, one, other, seed) for one, other in combinations(names, 2)]
    told["pairs"] = [pair for pair in told["pairs"] if pair["n"]]
    told["by_stratum"] = _alike_by_stratum(shared)
    return told


def _two(shared: Sequence[Reviewed], one: str, other: str, seed: int) -> dict[str, Any]:
    """Return how far two reviewers agree on the items both voted on, and what either said where the other said what."""
    both = [r for r in shared if one in r.said and other in r.said]
    ratings, clusters = [(r.said[one], r.said[other]) for r in both], [r.prompt_id for r in both]
    return {"reviewers": [one, other]} | agreement(ratings, clusters=clusters, labels=_LABELS, seed=seed)


def _alike_by_stratum(shared: Sequence[Reviewed]) -> list[dict[str, Any]]:
    """Return, per stratum, the share of shared items on which all who voted say the same."""
    told = []
    for name in dict.fromkeys(r.item.stratum for r in shared):
        found = [len(set(r.said.values())) == 1 for r in shared if r.item.stratum == name]
        told.append({"stratum": name, "n": len(found), "alike": _share(estimate.share(sum(found), len(found)))})
    return told


# -- the reviewers ---------------------------------------------------------------------------------------------------


def _votes(book: Book) -> dict[str, Any]:
    standing = list(book.standing())
    queues = Counter(book.items[v.item_id].queue for v in standing if v.item_id in book.items)
    return {
        "standing": len(standing),
        "by_queue": dict(sorted(queues.items())),
        "by_choice": dict(sorted(Counter(v.choice for v in standing).items())),
        "not_blind": sum(not v.blind for v in standing),
        "withdrawn": sum(v.id in book.withdrawn for v in book.votes),
    }


def _repeats(book: Book) -> Iterator[dict[str, Any]]:
    """Yield, per reviewer, how often the same item got the same answer with its sides swapped."""
    for reviewer in book.reviewers:
        agreed = n = 0
        for item in book.items.values():
            again = book.vote(reviewer, item.id) if item.repeats else None
            first = book.vote(reviewer, item.repeats) if item.repeats else None
            if again and first and again.choice in LABELS and first.choice in LABELS:
                n += 1
                agreed += LABELS[again.choice] == LABELS[first.choice]
        yield {"reviewer": reviewer, "n": n, "agreed": agreed, "share": _share(estimate.share(agreed, n))}


def _gold(book: Book) -> Iterator[dict[str, Any]]:
    """Yield, per reviewer, how often gold items were answered as expected, in practice and afterwards."""
    for reviewer in book.reviewers:
        for queue in ("practice", "gold"):
            right = n = 0
            for item in book.items.values():
                vote = book.vote(reviewer, item.id) if item.gold and item.queue == queue else None
                if vote and item.gold and vote.choice != "skip":
                    n += 1
                    right += LABELS.get(vote.choice) == item.gold.expect
            if n:
                told = {"reviewer": reviewer, "round": queue, "n": n, "right": right}
                yield told | {"share": _share(estimate.share(right, n))}


def _draw(book: Book, draw: Draw | None, run: RunView) -> dict[str, Any] | None:
    if draw is None:
        return None
    now = run.connection.execute(
        "SELECT count(DISTINCT subject) FROM ledger JOIN records ON records.id = subject "
        "WHERE ledger.tag = 'judgment' AND records.phase IN (SELECT value FROM json_each(?))",
        (canon.dumps(run.phases).decode(),),
    ).fetchone()[0]
    same = [d for d in book.draws if d.population_id == draw.population_id]
    return {
        "population": draw.population,
        "population_now": now,
        "strata": draw.strata,
        "drawings": len(same),
        "earlier_populations": len([d for d in book.draws if d.population]) - len(same),
    }


def _share(found: Share | None) -> dict[str, Any] | None:
    return found.as_dict() if found else None
