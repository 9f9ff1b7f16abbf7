"""compare: which answers to one prompt are put before the judge."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

from cai import canon
from cai.records import Comparison, Prompt, Response, Revision


class Chain(NamedTuple):
    """One sample and what it became in the rounds of critique and revision."""

    response: Response
    revisions: tuple[Revision, ...]
    """One per round in which something was revised; empty where nothing was."""


def compare(
    prompt: Prompt,
    chains: Sequence[Chain],
    *,
    phase: str,
    sources: Sequence[str],
    max_pairs: int,
    seed: int,
) -> list[Comparison]:
    """Return the comparisons of one prompt, in a fixed order.

    `revision` compares each first answer with its last revision: the judge decides which is better, never the
    construction. `samples` compares the samples with each other, at most `max_pairs` of them drawn by hash.
    """
    made = []
    if "revision" in sources:
        made += [
            _comparison(phase, prompt, chain.response, chain.revisions[-1], "revision")
            for chain in chains
            if chain.revisions
        ]
    if "samples" in sources:
        of = {chain.response.sample_index: chain.response for chain in chains}
        drawn = pairs_of(prompt, of, max_pairs=max_pairs, seed=seed)
        made += [_comparison(phase, prompt, of[a], of[b], "samples") for a, b in drawn]
    return made


def pairs_of(prompt: Prompt, samples: Iterable[int], *, max_pairs: int, seed: int) -> list[tuple[int, int]]:
    """Return which samples of a prompt are compared with which, by their indices: `max_pairs` at most, by hash."""
    pairs = sorted(combinations(samples, 2), key=lambda pair: canon.unit_interval(seed, "pair", prompt.id, *pair))
    return sorted(pairs[:max_pairs])


def compare_policies(
    prompt: Prompt, before: Sequence[Response], after: Sequence[Response], *, phase: str
) -> list[Comparison]:
    """Return the comparisons of two policies' answers: arm a is the policy before, arm b the one after."""
    return [_comparison(phase, prompt, a, b, "policies") for a, b in zip(before, after, strict=True)]


def _comparison(phase: str, prompt: Prompt, a: Response, b: Response | Revision, source: str) -> Comparison:
    return Comparison(phase=phase, prompt_id=prompt.id, a_id=a.id, b_id=b.id, source=source)  # type: ignore[arg-type]
