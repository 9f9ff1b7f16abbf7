"""What a run will ask for, before anything is asked: requests, tokens, disk and time, without a network.

Which principles are drawn for revision is decided by hash, so the numbers are exact, except where an answer decides:
a check that passes leaves nothing to revise or compare, reasons that are cut lead to no verdict, `judge.principles: 3`
draws three by what is compared, and a pair that speaks to the judge is given no canary. Those are given as the least
and the most. Answers that come out word for word the same are asked about once, which is not foreseen.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import constitution, fewshot, shipped
from cai.config import Phase, RunConfig
from cai.constitution import Principle
from cai.pipeline import judges
from cai.pipeline.evaluation import asks_likelihood
from cai.pipeline.forecast import forecast
from cai.pipeline.ingest import Divided
from cai.pipeline.listener import judge_request, n_check
from cai.pipeline.space import BYTES_PER_CALL, BYTES_PER_TOKEN
from cai.records import Prompt
from cai.stages.compare import pairs_of
from cai.stages.critique import draw, request_turn
from cai.stages.judge import OPTIONS, ORDERS, Bench
from cai.stages.judge.counting import Question, calls_of, calls_of_content_free, canary_readers, content_free_of
from cai.stages.judge.letters import CONTENT_FREE
from cai.stages.respond import opening
from cai.stages.walk import Walk
from cai.templates import Fence, Templates, Turn

_CHARS_PER_TOKEN = 4.0
"""Rough, for English; the tokenizer is not loaded for a plan."""
_TOKENS_PER_S = {"cpu": 210.0, "cuda": 15_000.0}
"""Generated tokens per second of a 135M model on two cores, and of a model of a few billion weights on one GPU: the
first is measured (docs/benchmarks.md), the second an order of magnitude."""
_PREFILL_PER_S = {"cpu": 430.0, "cuda": 150_000.0}
"""The same for prompt tokens."""


@dataclass
class Count:
    """How many requests of one kind: at least and at most."""

    least: int = 0
    most: int = 0

    def add(self, least: int, most: int | None = None) -> None:
        """Add a number, or a range."""
        self.least += least
        self.most += least if most is None else most


@dataclass
class PhasePlan:
    """One phase's requests."""

    name: str
    kinds: dict[str, Count] = field(default_factory=lambda: {k: Count() for k in KINDS})
    new_tokens: int = 0
    read_tokens: int = 0


KINDS = ("respond", "critique", "revise", "judge", "prior", "canary", "reward", "likelihood")
"""`prior` are questions on pairs without content (`judge.prior`), `reward` those to a reward model that judges."""


class Planner:
    """Counts a config's requests."""

    def __init__(self, config: RunConfig, near: Path | None) -> None:
        self.config = config
        self.constitution = constitution.load(shipped.find(config.constitution, near=near))
        self.templates = Templates(shipped.find(config.templates or "prompts", near=near))
        self.divided = Divided(config, near)
        self.bench = Bench(
            self.constitution.principles,
            self.templates,
            config.judge,
            Fence(b"plan"),
            judges.JUDGE,
            config.run.seed,
            few_shot=fewshot.for_judge(config.judge.few_shot, near=near),
            seats=judges.unasked(config),
        )
        self._shots = fewshot.for_critic(config.critique.few_shot, near=near)
        self._seats = self.bench.seated(None)
        self._learnt: tuple[set[Question], set[Question]] = set(), set()
        """What has surely, and may have been, asked on pairs without content: once in a run."""
        self._readers: set[str] = set()
        """Judges that may have been tried with canaries."""

    def phases(self) -> list[PhasePlan]:
        """Return the plan of every phase of every round, and of the evaluation."""
        plans = [self._check()] if self.config.judge.check.enforce else []
        for round_ in range(1, self.config.rounds + 1):
            for phase in self.config.phases:
                name = phase.name if self.config.rounds == 1 else f"{phase.name}-{round_}"
                plans.append(self._phase(phase, name))
        if self.config.evaluate.samples and any(p.train != "none" for p in self.config.phases):
            plans.append(self._evaluation())
        return plans

    def _phase(self, phase: Phase, name: str) -> PhasePlan:
        plan = PhasePlan(name)
        seed = Walk(phase, name, self.config, None, None, self.bench).seed  # type: ignore[arg-type]
        for prompt in self.divided.prompts("train") if phase.walks else ():
            surely, maybe = self._chains(plan, phase, prompt, seed)
            if "revision" not in phase.pairs:
                surely, maybe = set(), set()
            drawn = pairs_of(prompt, range(phase.samples), max_pairs=phase.max_pairs, seed=seed)
            pairs = drawn if "samples" in phase.pairs else []
            compared = {sample for pair in pairs for sample in pair}
            self._judge(
                plan,
                prompt,
                Count(len(pairs) + len(surely), len(pairs) + len(maybe)),
                Count(len(compared | surely) + len(surely), len(compared | maybe) + len(maybe)),
            )
        return plan

    def _chains(self, plan: PhasePlan, phase: Phase, prompt: Prompt, seed: int) -> tuple[set[int], set[int]]:
        """Count answers, critiques and revisions of one prompt; return which samples will, and may, be revised."""
        config, n_prompt = self.config, _tokens(_text(prompt))
        surely, maybe = set(), set()
        plan.kinds["respond"].add(phase.samples)
        plan.read_tokens += phase.samples * n_prompt
        plan.new_tokens += phase.samples * config.respond.max_tokens
        for sample in range(phase.samples):
            for round_ in range(1, phase.revisions + 1):
                principle = draw(self.bench.principles, prompt, sample_index=sample, round=round_, seed=seed)
                if principle is None:
                    continue
                asked = principle.check is None
                plan.kinds["critique"].add(int(asked))
                sure = asked or config.revise.when == "always"
                plan.kinds["revise"].add(int(sure), 1)
                plan.new_tokens += asked * config.critique.max_tokens + config.revise.max_tokens
                maybe.add(sample)
                surely |= {sample} if sure else set()
        return surely, maybe

    def _judge(self, plan: PhasePlan, prompt: Prompt, pairs: Count, answers: Count) -> None:
        """Count what is asked about some comparisons of so many different answers to one prompt."""
        settings, able = self.config.judge, self.bench.able(prompt.domain)
        few, many = self._drawn(able)
        least, most = (calls_of(principles, self._seats, settings) for principles in (few, many))
        plan.kinds["judge"].add(pairs.least * least.least, pairs.most * most.most)
        plan.kinds["reward"].add(answers.least * least.reward_models, answers.most * most.reward_models)
        if pairs.most and most.most:
            self._prior(plan, few if pairs.least and few == able else [], able)
            self._canaries(plan, pairs.most)
        pair = _tokens(_text(prompt)) + 2 * self.config.respond.max_tokens + 120 + _tokens(self.bench.few_shot)
        plan.read_tokens += pairs.most * (2 * pair + most.most * 60)
        plan.new_tokens += pairs.most * most.written * settings.cot.max_tokens

    def _drawn(self, able: Sequence[Principle]) -> tuple[Sequence[Principle], Sequence[Principle]]:
        """Return the principles that cost least and most of those that one comparison may be judged by."""
        wanted = self.config.judge.principles
        if wanted == "all" or wanted >= len(able):
            return able, able
        by_cost = sorted(able, key=lambda p: calls_of([p], self._seats, self.config.judge).most)
        return by_cost[:wanted], by_cost[-wanted:]

    def _prior(self, plan: PhasePlan, sure: Sequence[Principle], able: Sequence[Principle]) -> None:
        """Count the questions without content under these principles, where no phase before has asked them."""
        for bound, principles in enumerate((sure, able)):
            asked = content_free_of(principles, self._seats, self.config.judge) - self._learnt[bound]
            self._learnt[bound].update(asked)
            n = sum(calls_of_content_free(question)[bound] for question in asked)
            plan.kinds["prior"].add(0 if bound else n, n if bound else 0)
            if bound:
                n_written = len(CONTENT_FREE) * sum(question.mode == "cot" for question in asked)
                plan.new_tokens += n_written * self.config.judge.cot.max_tokens

    def _canaries(self, plan: PhasePlan, n_pairs: int) -> None:
        readers = canary_readers(self._seats, self.config.judge)
        n_tried = len(readers - self._readers) * len(CONTENT_FREE) * len(OPTIONS)
        self._readers |= readers
        plan.kinds["canary"].add(0, n_tried + n_pairs * len(readers) * len(ORDERS))

    def _evaluation(self) -> PhasePlan:
        """Count the held-out answers: the first policy's in any run that trains, and what follows on a second one."""
        plan, section = PhasePlan("evaluate"), self.config.evaluate
        n_policies = 1 + any(p.train not in ("none", "reward") for p in self.config.phases)
        n_samples = n_policies * section.samples
        for prompt in self.divided.prompts("held_out"):
            plan.kinds["respond"].add(n_samples)
            plan.new_tokens += n_samples * (section.max_tokens or self.config.respond.max_tokens)
            if n_policies > 1:
                plan.kinds["likelihood"].add(3 * asks_likelihood(prompt, section.likelihoods))
                n_pairs = section.samples if section.judge else 0
                self._judge(plan, prompt, Count(n_pairs, n_pairs), Count(2 * n_pairs, 2 * n_pairs))
        return plan

    def _check(self) -> PhasePlan:
        plan = PhasePlan("judge check")
        plan.kinds["judge"].add(n_check(self.bench))
        return plan

    def examples(self) -> list[dict[str, str]]:
        """Return three prompts as they will be sent: to the policy, for a critique or a revision, and to the judge."""
        prompt = next(self.divided.prompts("train"))
        judged = (p for p in self.divided.prompts("train") if any(r.check is None for r in self.bench.able(p.domain)))
        asked = judge_request(self.bench, next(judged, prompt))
        shown = {
            "respond": opening(prompt, self.config.respond.system),
            **self._rewriting(prompt),
            "judge": asked or (Turn("user", "(checks alone decide here; no judge is asked)"),),
        }
        return [{"stage": stage, "text": _as_sent(turns)} for stage, turns in shown.items()]

    def _rewriting(self, prompt: Prompt) -> dict[str, tuple[Turn, ...]]:
        """Return the first request under a principle that answers are revised by, one without a check if any is."""
        able = [p for p in self.bench.principles if p.revision]
        principle = next((p for p in able if p.check is None), next(iter(able), None))
        if principle is None:
            return {}
        answer = Turn("assistant", "(the policy's answer)")
        conversation = (*opening(prompt, self.config.respond.system, self._shots), answer)
        critique = (*conversation, request_turn(principle, self.templates["critique"]))
        if principle.check is None:
            return {"critique": critique}
        question = prompt.messages[-1].content
        asked = self.templates["revision"].turns(request=principle.revision, question=question)
        return {"revise": (*critique, Turn("assistant", "(what the check found)"), *asked)}


def plan(config: RunConfig, near: Path | None, *, device: str = "cpu") -> dict[str, Any]:
    """Return the whole plan as JSON can say it."""
    planner = Planner(config, near)
    with planner.divided:
        return _planned(planner, near, device)


def _planned(planner: Planner, near: Path | None, device: str) -> dict[str, Any]:
    config, phases = planner.config, planner.phases()
    most = sum(c.most for p in phases for c in p.kinds.values())
    new, read = sum(p.new_tokens for p in phases), sum(p.read_tokens for p in phases)
    seconds = new / _TOKENS_PER_S[device] + read / _PREFILL_PER_S[device]
    return {
        "config": config.model_dump(mode="json"),
        "prompts": planner.divided.counts,
        "phases": [{"name": p.name, **{k: [c.least, c.most] for k, c in p.kinds.items()}} for p in phases],
        "requests": [sum(c.least for p in phases for c in p.kinds.values()), most],
        "tokens_at_most": {"generated": new, "read": read},
        "disk_mb_at_most": round((most * BYTES_PER_CALL + new * BYTES_PER_TOKEN) / 1e6, 1),
        "generation_minutes_at_most": {"device": device, "minutes": round(seconds / 60, 1)},
        "kept": forecast(config, near),
        "options": list(OPTIONS),
        "examples": planner.examples(),
    }


def _as_sent(turns: Sequence[Turn]) -> str:
    return "\n\n".join(f"[{turn.role}]\n{turn.text}" for turn in turns)


def _text(prompt: Prompt) -> str:
    return "\n\n".join(m.content for m in prompt.messages)


def _tokens(text: str) -> int:
    return int(len(text) / _CHARS_PER_TOKEN) + 1
