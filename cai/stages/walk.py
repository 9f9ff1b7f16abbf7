"""The whole walk of one prompt, stage after stage. Many prompts walk at once, each at its own pace."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from cai import canon
from cai.config import Phase, RespondSection, RunConfig
from cai.engine.model import Sampling
from cai.records import Comparison, Critique, Judgment, Prompt, Response, Revision
from cai.stages.compare import Chain, compare
from cai.stages.critique import critique, draw
from cai.stages.judge import Bench, judge
from cai.stages.respond import opening, respond
from cai.stages.revise import revise
from cai.store.calls import Recorded
from cai.templates import Turn


@dataclass
class Walked:
    """Everything one prompt's walk wrote and decided."""

    prompt: Prompt
    chains: list[Chain] = field(default_factory=list)
    critiques: list[Critique] = field(default_factory=list)
    comparisons: list[Comparison] = field(default_factory=list)
    judgments: list[Judgment] = field(default_factory=list)

    @property
    def written(self) -> list[Response | Revision | Critique | Comparison]:
        """Every record of written text, parents first."""
        answers = [r for chain in self.chains for r in (chain.response, *chain.revisions)]
        return [*answers, *self.critiques, *self.comparisons]


@dataclass(frozen=True)
class Walk:
    """What every prompt of a phase walks with."""

    phase: Phase
    name: str
    """The phase's name in records, which says the round too."""
    config: RunConfig
    policy: Recorded
    judge: Recorded
    bench: Bench
    shots: tuple[Turn, ...] = ()
    """Worked critiques that the critic and the reviser read before the conversation."""

    @property
    def seed(self) -> int:
        """The seed of this phase's draws."""
        return canon.seed_of(self.config.run.seed, self.name)

    @property
    def inputs_id(self) -> str:
        """Content id of everything that decides what this walk asks: same id, nothing to do again."""
        config = self.config
        used = {
            "phase": self.phase.model_dump(exclude={"train"}),
            "seed": self.seed,
            "policy": self.policy.identity,
            "judge": self.judge.identity,
            "judges": self.bench.judges,
            "templates": self.bench.templates.ids,
            "principles": [
                p.model_dump(mode="json", exclude={"tests", "origin"}) | p.part_ids for p in self.bench.principles
            ],
            "respond": config.respond.model_dump(),
            "critique": config.critique.model_dump(),
            "revise": config.revise.model_dump(),
            "judge_settings": config.judge.model_dump(exclude={"on_disagreement", "check"}),
            "few_shot": self.bench.few_shot,
            "shots": [turn.text_id for turn in self.shots],
        }
        return canon.content_id("walk", used)

    async def __call__(self, prompt: Prompt) -> Walked:
        """Walk one prompt. Raises RejectedError where the prompt itself cannot be asked about."""
        walked = Walked(prompt)
        responses = await respond(
            prompt,
            self.policy,
            phase=self.name,
            samples=self.phase.samples,
            sampling=sampling_of(self.config.respond),
            system=self.config.respond.system,
            seed=self.seed,
        )
        walked.chains = list(await asyncio.gather(*(self._revise_all(prompt, r, walked) for r in responses)))
        walked.comparisons = compare(
            prompt,
            walked.chains,
            phase=self.name,
            sources=self.phase.pairs,
            max_pairs=self.phase.max_pairs,
            seed=self.seed,
        )
        texts = {r.id: r.text for chain in walked.chains for r in (chain.response, *chain.revisions)}
        judged = await asyncio.gather(
            *(judge(c, prompt, texts[c.a_id], texts[c.b_id], self.judge, self.bench) for c in walked.comparisons)
        )
        walked.judgments = [judgment for judgments in judged for judgment in judgments]
        return walked

    async def _revise_all(self, prompt: Prompt, response: Response, walked: Walked) -> Chain:
        revisions: list[Revision] = []
        conversation = (*opening(prompt, self.config.respond.system, self.shots), Turn("assistant", response.text))
        for round_ in range(1, self.phase.revisions + 1):
            answer = revisions[-1] if revisions else response
            principle = draw(
                self.bench.principles, prompt, sample_index=response.sample_index, round=round_, seed=self.seed
            )
            if principle is None:
                break
            found = await critique(
                answer,
                principle,
                conversation,
                self.judge,
                round=round_,
                template=self.bench.templates["critique"],
                sampling=sampling_of(self.config.critique),
                seed=self.seed,
            )
            walked.critiques.append(found)
            if found.passed and self.config.revise.when == "flagged":
                continue
            revised = await revise(
                answer,
                found,
                principle,
                conversation,
                self.judge,
                templates=self.bench.templates,
                sampling=sampling_of(self.config.revise),
                seed=self.seed,
            )
            revisions.append(revised)
            conversation = (*conversation[:-1], Turn("assistant", revised.text))
        return Chain(response, tuple(revisions))


def sampling_of(section: RespondSection | object, *, max_tokens: int | None = None) -> Sampling:
    """Return the sampling a config section asks for."""
    wanted = {
        name: getattr(section, name)
        for name in ("max_tokens", "temperature", "min_p", "top_p")
        if hasattr(section, name)
    }
    return Sampling(**(wanted | ({"max_tokens": max_tokens} if max_tokens else {})))
