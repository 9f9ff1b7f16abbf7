"""Best-of-n: how good the answer is that a scorer picks among n of a policy's answers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

from cai.evaluate.intervals import estimate, mean

Scored = Sequence[tuple[float, float]]
"""One prompt's answers as (score by the scorer that picks, worth by what is measured)."""


def expected(scored: Scored, n: int) -> float:
    """Return the expected worth of the answer with the highest score among `n` drawn from these without replacement.

    Exact and unbiased over all ways to draw (Nakano et al. 2021, 2112.09332, appendix I): an answer whose score is the
    k-th lowest of N is picked in C(k-1, n-1) of the C(N, n) draws. Answers with one score share their chances.
    """
    ordered = sorted(scored)
    ways, below, total = math.comb(len(ordered), n), 0, 0.0
    for _, group in groupby(ordered, key=lambda pair: pair[0]):
        worths = [worth for _, worth in group]
        upto = below + len(worths)
        picked = math.comb(upto, n) - math.comb(below, n)
        total += picked / ways * math.fsum(worths) / len(worths)
        below = upto
    return total


def kl(n: int) -> float:
    """Return how far best-of-n moves from the policy, in nats: log n - (n - 1) / n (Stiennon et al. 2020)."""
    return math.log(n) - (n - 1) / n


def curve(by_prompt: Mapping[str, Scored], sizes: Sequence[int], *, seed: int) -> list[dict[str, Any]]:
    """Return the mean worth of best-of-n for every n of `sizes`, with intervals clustered by prompt.

    Prompts with fewer than n answers are left out of that point, so `n_prompts` may fall along the curve.
    """
    points = []
    for n in sizes:
        rows = [(expected(scored, n), 1.0) for scored in by_prompt.values() if len(scored) >= n]
        found = estimate(rows, mean, seed=seed)
        if found:
            points.append({"n": n, "kl": kl(n), "worth": found.as_dict()})
    return points
