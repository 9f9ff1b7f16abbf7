"""How far a judge agrees with people: accuracy, kappa, AC1, per subset, and what it goes by instead.

A verdict counts only where both orders name the same winner; the rest abstains and is told as coverage, never as a coin
flip. Beside it stands the *averaged* verdict (mean probability of both orders), which almost always names a winner, so
that a judge without a coherent opinion can be seen to be at chance.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

from cai import checks
from cai.assay import reliability
from cai.assay.asking import Said, letter
from cai.assay.labelled import Labelled
from cai.evaluate.agreement import ALPHA, agreement
from cai.evaluate.intervals import LEVEL, estimate, mean, wilson
from cai.records import Label
from cai.stages.judge import ORDERS

CHANCE = 0.5
NEAR_CHANCE = 0.65
"""An accuracy that is not surely other than chance is called chance where its interval ends below this."""
LEAST_ROWS = 8
"""Subsets with fewer rows than this are told together, as `other`."""


@dataclass(frozen=True, slots=True)
class Row:
    """One labelled pair and what the judge said of it."""

    pair: Labelled
    said: Said

    @property
    def averaged(self) -> Label | None:
        """The winner by the mean of both orders; None where a reply could not be read, `tie` at exactly one half."""
        p_a = self.said.p_a
        return None if p_a is None else "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b"

    @property
    def prompt_id(self) -> str:
        """What rows resemble each other by."""
        return self.pair.prompt.id


def measure(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return everything measured, as JSON can say it."""
    told = {
        "n": len(rows),
        "labels": {label: sum(r.pair.label == label for r in rows) for label in ("a", "b", "tie")},
        "overall": agree(rows, seed=seed),
        "subsets": subsets(rows, seed=seed),
        "people": people(rows, seed=seed),
        "position": position(rows),
        "length": leaning(rows, lambda text: checks.count_words(text)),
        "lists": leaning(rows, marks),
        "effects": None,
        "flagged": sum(r.said.flag is not None for r in rows),
        "unusable": _counted(j.reason or j.verdict for r in rows for j in r.said.judgments if not j.usable),
        "n_judgments": sum(len(r.said.judgments) for r in rows),
        "priors": sorted({round(prior, 4) for r in rows for prior in r.said.priors}),
        "calibration": reliability.measure(rows, seed=seed),
    }
    return told | {"plainly": plainly(told)}


def agree(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any]:
    """Return agreement with the people's labels: where it decided, and by the averaged verdict.

    `coverage`: share of rows with a verdict; `decided` and `averaged`: accuracy over the rows people did not call a
    tie, with an interval clustered by prompt; kappa and AC1 over all labels.
    """
    decided = [r for r in rows if r.said.winner is not None]
    return {
        "n": len(rows),
        "coverage": _share(len(decided), len(rows)),
        "decided": _accuracy(rows, lambda r: r.said.winner, seed),
        "averaged": _accuracy(rows, lambda r: r.averaged, seed),
        "agreement_decided": _agreement(rows, lambda r: r.said.winner, seed),
        "agreement_averaged": _agreement(rows, lambda r: r.averaged, seed),
    }


def _accuracy(rows: Sequence[Row], verdict: Callable[[Row], Label | None], seed: int) -> dict[str, Any] | None:
    by_prompt: dict[str, list[float]] = {}
    for row in rows:
        said = verdict(row)
        if row.pair.label != "tie" and said in ("a", "b"):
            cell = by_prompt.setdefault(row.prompt_id, [0.0, 0.0])
            cell[0] += said == row.pair.label
            cell[1] += 1
    found = estimate(list(by_prompt.values()), mean, no_effect=CHANCE, seed=seed)
    if found is None:
        return None
    hits, n = (int(sum(cell[i] for cell in by_prompt.values())) for i in (0, 1))
    told = found.as_dict() | {"hits": hits, "n": n}
    if found.low is not None and found.low == found.high:
        # All right, or none: every resample says the same, and how few the prompts are would not be told.
        told["low"], told["high"] = wilson(round(found.value * found.n_prompts), found.n_prompts) or (None, None)
    return told


def _agreement(rows: Sequence[Row], verdict: Callable[[Row], Label | None], seed: int) -> dict[str, Any]:
    """Return kappa and AC1 over all labels; over those but ties where the judge never calls one, as it could not."""
    calls_ties = any(verdict(row) == "tie" for row in rows)
    used = [row for row in rows if calls_ties or row.pair.label != "tie"]
    pairs = [(row.pair.label, verdict(row)) for row in used]
    return agreement(pairs, clusters=[row.prompt_id for row in used], labels=["a", "b"], seed=seed)


def subsets(rows: Sequence[Row], *, seed: int = 0) -> list[dict[str, Any]]:
    """Return the agreement per subset, in the order of the file; small subsets are told together."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.pair.subset or "all", []).append(row)
    small = [name for name, found in groups.items() if len(found) < LEAST_ROWS]
    if len(small) > 1:
        groups["other"] = [row for name in small for row in groups.pop(name)]
    found = []
    for name, part in groups.items():
        told = agree(part, seed=seed)
        kappa = told["agreement_averaged"]["kappa"]
        found.append({
            "subset": name, "n": told["n"], "coverage": told["coverage"], "decided": told["decided"],
            "averaged": told["averaged"], "kappa": kappa["value"] if kappa else None,
        })  # fmt: skip
    return found


def people(rows: Sequence[Row], *, seed: int = 0) -> dict[str, Any] | None:
    """Return how far several people agree with each other, the ceiling for any judge; None where one label is given."""
    rated = [row for row in rows if len(row.pair.raters) > 1]
    if not rated:
        return None
    both = [(x, y) for row in rated for x, y in combinations(row.pair.raters, 2)]
    widest = max(len(row.pair.raters) for row in rated)
    ratings = [(*row.pair.raters, *[None] * (widest - len(row.pair.raters))) for row in rated]
    alpha = ALPHA.estimate(ratings, clusters=[row.prompt_id for row in rated], seed=seed)
    agreed = sum(x == y for x, y in both)
    return {"n": len(rated), "agreed": _share(agreed, len(both)), "alpha": alpha.as_dict() if alpha else None}


def position(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return what the judge makes of position; None where it never reads a pair in two orders.

    `same_letter`: rows on which it named the same letter in both orders, so contradicting itself; `first`: letter A
    among all letters named; `p_value` of an exact binomial test that its contradictions favour neither letter.
    """
    named = [[letter(row.said.p_in(order), order) for order in ORDERS] for row in rows]
    both = [pair for pair in named if None not in pair]
    if not both:
        return None
    same = [pair[0] for pair in both if pair[0] == pair[1]]
    letters = [found for pair in named for found in pair if found]
    n_a = sum(found == "A" for found in letters)
    return {
        "n": len(both),
        "same_letter": _share(len(same), len(both)),
        "same_a": sum(found == "A" for found in same),
        "same_b": sum(found == "B" for found in same),
        "first": _share(n_a, len(letters)),
        "p_value": two_sided(sum(found == "A" for found in same), len(same)),
    }


def two_sided(hits: int, n: int) -> float:
    """Return the exact two-sided binomial p-value of `hits` of `n` at one half; 1 of nothing."""
    tail = min(hits, n - hits)
    logs = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) - n * math.log(2) for k in range(tail + 1))
    return min(1.0, 2 * math.fsum(math.exp(x) for x in logs))


def leaning(rows: Sequence[Row], size: Callable[[str], int]) -> dict[str, Any] | None:
    """Return how often the judge, and people, prefer the answer with more of something; None without such rows."""
    by_judge, by_people = [], []
    for row in rows:
        more = size(row.pair.text_a) - size(row.pair.text_b)
        if not more:
            continue
        if row.averaged in ("a", "b"):
            by_judge.append((row.averaged == "a") == (more > 0))
        if row.pair.label != "tie":
            by_people.append((row.pair.label == "a") == (more > 0))
    if not by_judge or not by_people:
        return None
    return {"judge": _share(sum(by_judge), len(by_judge)), "people": _share(sum(by_people), len(by_people))}


def marks(text: str) -> int:
    """Return how many lines are list items or headings, and how many pieces are bold."""
    lines = text.splitlines()
    listed = sum(line.lstrip()[:2] in ("- ", "* ", "• ") or line.lstrip()[:1] == "#" for line in lines)
    numbered = sum(line.lstrip()[:1].isdigit() and line.lstrip()[1:3].strip() in (".", ")") for line in lines)
    return listed + numbered + text.count("**") // 2


def plainly(told: dict[str, Any]) -> list[str]:
    """Return what the figures say, in plain sentences; the first is whether the judge beats chance."""
    return [*_of_accuracy(told["overall"]), *_of_position(told["position"]), *_of_use(told)]


def _of_accuracy(overall: dict[str, Any]) -> Iterable[str]:
    averaged = overall["averaged"]
    if averaged is None:
        yield "The judge gave no verdict that can be compared with people's."
        return
    value = f"{averaged['value']:.1%} of {averaged['n']}"
    between = f" ({averaged['low']:.1%} to {averaged['high']:.1%})" if averaged["low"] is not None else ""
    if averaged["is_clear"] and averaged["value"] > CHANCE:
        yield f"The judge agrees with people on {value}{between}, which is better than chance."
    elif averaged["is_clear"]:
        yield f"The judge agrees with people on {value}{between}, which is worse than chance."
    elif averaged["high"] is not None and averaged["high"] < NEAR_CHANCE:
        yield f"The judge agrees with people on {value}{between}: about chance. Its labels say nothing about people's."
    else:
        yield f"The judge agrees with people on {value}{between}: too few pairs to tell it from chance."


def _of_position(found: dict[str, Any] | None) -> Iterable[str]:
    if found is None or found["same_letter"] is None:
        return
    share, n_a, n_b = found["same_letter"]["value"], found["same_a"], found["same_b"]
    leans = found["p_value"] < 1 - LEVEL
    if found["same_letter"]["low"] > 0.5 or (share >= 0.5 and leans):
        # A coin tossed for every order names the same letter on half of the pairs, and favours neither.
        mostly = f", mostly {'A' if n_a > n_b else 'B'}" if leans else ""
        yield f"It named the same letter in both orders on {share:.0%} of the pairs{mostly}: it judges by position."
    elif share >= 0.2:
        yield f"It contradicts itself on {share:.0%} of the pairs when the order is swapped."


def _of_use(told: dict[str, Any]) -> Iterable[str]:
    coverage = told["overall"]["coverage"]
    if coverage and coverage["value"] < 0.5:
        yield f"It stands by its verdict in both orders on {coverage['value']:.0%} of the pairs only; the rest abstain."
    n_bad = sum(told["unusable"].values())
    if n_bad:
        yield f"{n_bad:,} of {told['n_judgments']:,} replies could not be read and count for nothing."


def _share(hits: int, n: int) -> dict[str, Any] | None:
    interval = wilson(hits, n)
    return interval and {"value": hits / n, "low": interval[0], "high": interval[1], "hits": hits, "n": n}


def _counted(words: Iterable[str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for word in words:
        found[word] = found.get(word, 0) + 1
    return dict(sorted(found.items(), key=lambda item: -item[1]))
