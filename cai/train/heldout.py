"""Looks at the policy on held-out prompts while it is trained: what the tripwires hang on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from cai import canon
from cai.config import WatchSection
from cai.train import telemetry
from cai.train.rewards import Mix, Scored, Source
from cai.train.rollouts import PromptRow, Rollout

Rendered = tuple[PromptRow, list[int]]


class HeldOut:
    """The held-out prompts, and who scores the answers to them."""

    def __init__(
        self,
        prompts: Sequence[Rendered],
        settings: WatchSection,
        mix: Mix | None,
        referees: Sequence[Source],
        seed: int,
        max_new_tokens: int,
    ) -> None:
        """`referees` are the judge and the checks, whatever the reward is made of; some of them may be in `mix` too.

        `mix` is None for methods that reward nothing.
        """
        drawn = sorted(prompts, key=lambda prompt: canon.unit_interval(seed, "watch", prompt[0].id))
        self.prompts = drawn[: settings.prompts]
        self.settings, self.max_new_tokens = settings, max_new_tokens
        self._mix, self._referees = mix, list(referees)
        self.seeds = [canon.seed_of(seed, "watch", row.id) for row, _ in self.prompts]
        """The same at every look, so that looks differ by the policy alone."""

    def look(
        self,
        step: int,
        sample: Callable[[Sequence[Rendered], Sequence[int]], list[Rollout]],
        measure: Callable[[Sequence[Rollout]], dict[str, float]],
    ) -> dict[str, Any]:
        """Return the figures of a look. `measure` gives kl (nats per answer) and entropy (nats per token).

        The answers are scored by one process for all, so that a judge is asked once and all stop at the same look.
        """
        answers = sample(self.prompts, self.seeds)
        look = {
            "step": step,
            **(self._scores(answers) if PartialState().is_main_process else {}),
            **measure(answers),
            "length": fmean(len(answer.answer_ids) for answer in answers),
            **telemetry.of_texts([answer.text for answer in answers]),
        }
        return broadcast_object_list([look])[0]

    def _scores(self, answers: Sequence[Rollout]) -> dict[str, float | None]:
        """Return the mean reward and every source's mean; None where a source failed on all answers."""
        mixed = self._mix.score(answers) if self._mix else Scored([], {})
        told = {source.name: source.score(answers) for source in self._referees if source.name not in mixed.by_source}
        reward = {"reward": mixed.totals} if self._mix else {}
        means: dict[str, float | None] = {}
        for name, scores in (reward | mixed.by_source | told).items():
            valid = [score for score in scores if score is not None]
            means[name] = fmean(valid) if valid else None
        return means
