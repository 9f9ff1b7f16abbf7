"""How often the last policy's answer is the better one, by all principles, by the judge model alone, and by each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from cai import checks
from cai.evaluate.intervals import estimate, mean
from cai.evaluate.judging import JudgeCount
from cai.evaluate.lengths import Match, controlled
from cai.stages.settle import Vote
from cai.trail import Ended, RunView

PHASE = "evaluate"
"""The phase of the comparisons of two policies: arm a is the first policy's answer, arm b the last one's."""


@dataclass
class Wins:
    """Comparisons won by the last policy, per prompt. A tie counts half; what was not decided is counted apart."""

    wins: int = 0
    losses: int = 0
    ties: int = 0
    undecided: Counter[str] = field(default_factory=Counter)
    """Comparisons without a label, by what became of them."""
    by_prompt: dict[str, list[float]] = field(default_factory=dict)
    """[score, decided comparisons] of every prompt."""
    matches: list[Match] = field(default_factory=list)
    """The decided comparisons, one by one."""

    def add(self, prompt_id: str, p_after: float | None, why: str, *, tie_margin: float, gap: int = 0) -> None:
        """Count one comparison; `p_after` is None where it was not decided, and `why` then says why.

        `gap` is by how many words the last policy's answer is longer.
        """
        row = self.by_prompt.setdefault(prompt_id, [0.0, 0.0])
        if p_after is None:
            self.undecided["abstained" if why == "abstains" else why] += 1
            return
        is_tie = abs(p_after - 0.5) <= tie_margin
        self.ties += is_tie
        self.wins += not is_tie and p_after > 0.5
        self.losses += not is_tie and p_after < 0.5
        score = 0.5 if is_tie else float(p_after > 0.5)
        row[0] += score
        row[1] += 1
        self.matches.append(Match(prompt_id, score, gap))

    def as_dict(self, *, seed: int) -> dict[str, Any]:
        """Return the counts and the win rate, its interval clustered by prompt."""
        rate = estimate(list(self.by_prompt.values()), mean, no_effect=0.5, seed=seed)
        return {
            "wins": self.wins,
            "losses": self.losses,
            "ties": self.ties,
            "undecided": dict(sorted(self.undecided.items())),
            "comparisons": self.wins + self.losses + self.ties + sum(self.undecided.values()),
            "rate": rate.as_dict() if rate else None,
        }


def weighted(votes: Iterable[Vote]) -> float | None:
    """Return P(arm a is better) by the principles among these that vote; None where none does."""
    voting = [v for v in votes if v.stand == "votes" and v.p_a is not None]
    weight = sum(v.weight for v in voting)
    return sum(v.weight * (v.p_a or 0.0) for v in voting) / weight if weight else None


def measure(run: RunView, *, seed: int, phase: str = PHASE) -> dict[str, Any] | None:
    """Return win rates of the last policy over the first, with the judge's reliability; None without comparisons.

    `length_controlled` stands beside the rates of all principles together and of the judge model alone.
    """
    settings, counted = run.config.judge, JudgeCount(run.questions)
    settled, model, single = Wins(), Wins(), dict[str, Wins]()
    by_model = {p.id for p in run.constitution.principles if p.check is None}
    for end in run.ended(phase, side="held_out"):
        counted.add(end)
        margin = settings.tie_margin
        _count(settled, end, end.settled.p_a, end.settled.state, margin)
        asked = [v for v in end.settled.votes if v.principle_id in by_model]
        if asked:
            _count(model, end, weighted(asked), _why_none(asked), margin)
        for vote in end.settled.votes:
            p_a = vote.p_a if vote.stand == "votes" else None
            _count(single.setdefault(vote.principle_id, Wins()), end, p_a, vote.stand, margin)
    if not settled.by_prompt:
        return None
    return {
        "settled": _with_lengths(settled, seed),
        "by_model": _with_lengths(model, seed) if model.by_prompt else None,
        "by_principle": {name: wins.as_dict(seed=seed) for name, wins in single.items()},
        "reliability": counted.as_dict(),
    }


def _with_lengths(wins: Wins, seed: int) -> dict[str, Any]:
    return wins.as_dict(seed=seed) | {"length_controlled": controlled(wins.matches, seed=seed)}


def _count(wins: Wins, end: Ended, p_a: float | None, why: str, margin: float) -> None:
    before, after = end.arms
    gap = checks.count_words(after.text) - checks.count_words(before.text)
    wins.add(end.prompt.id, None if p_a is None else 1 - p_a, why, tie_margin=margin, gap=gap)


def _why_none(votes: Iterable[Vote]) -> str:
    """Return what the principles say that do not vote, the gravest first."""
    stands = {v.stand for v in votes}
    order = ("missing", "refused", "invalid", "abstains", "not_applicable")
    return next((stand for stand in order if stand in stands), "abstains")
