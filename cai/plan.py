"""What a run will ask for, before anything is asked: requests, tokens, disk and time, without a network.

Which principles are drawn and compared is decided by hash, so the numbers are exact, except where an answer decides:
a check that passes leaves nothing to revise or compare. Those are given as the least and the most.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import constitution, fewshot, shipped
from cai.config import Phase, RunConfig
from cai.constitution import Principle
from cai.pipeline import judges
from cai.pipeline.evaluation import asks_likelihood
from cai.pipeline.forecast import count_check, forecast
from cai.pipeline.ingest import Divided
from cai.pipeline.space import BYTES_PER_CALL, BYTES_PER_TOKEN
from cai.records import Comparison, Prompt
from cai.stages.critique import draw
from cai.stages.judge import OPTIONS, Bench, Seat
from cai.stages.judge.letters import CONTENT_FREE
from cai.stages.respond import opening
from cai.stages.walk import Walk
from cai.templates import Fence, Templates, Turn

_CHARS_PER_TOKEN = 4.0
"""Rough, for English; the tokenizer is not loaded for a plan."""
_TOKENS_PER_S = {"cpu": 450.0, "cuda": 15_000.0}
"""Generated tokens per second of a 135M model on two cores, and of a model of a few billion weights on one GPU: the
first is measured (docs/benchmarks.md), the second an order of magnitude."""
_PREFILL_PER_S = {"cpu": 4_000.0, "cuda": 150_000.0}


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


KINDS = ("respond", "critique", "revise", "judge", "likelihood")


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
            "judge",
            config.run.seed,
            few_shot=fewshot.for_judge(config.judge.few_shot, near=near),
            seats=tuple(
                Seat(mode, "judge" if model is None else model.model_dump_json())
                for mode, model in judges.seated(config)
            ),
        )
        self._asked: dict[str, Principle] = {}
        """The principles that the judge is surely asked by, by their ids."""

    def phases(self) -> list[PhasePlan]:
        """Return the plan of every phase of every round, and of the evaluation."""
        plans = []
        for round_ in range(1, self.config.rounds + 1):
            for phase in self.config.phases:
                name = phase.name if self.config.rounds == 1 else f"{phase.name}-{round_}"
                plans.append(self._phase(phase, name))
        if self.config.evaluate.samples and any(p.train != "none" for p in self.config.phases):
            plans.append(self._evaluation())
        return [plan for plan in (self._check(), self._without_content()) if plan.kinds["judge"].most] + plans

    def _check(self) -> PhasePlan:
        """Count `cai judge check`, which an enforcing run makes first."""
        plan = PhasePlan("judge check")
        if self.config.judge.check.enforce:
            plan.kinds["judge"].add(count_check(self.bench))
        return plan

    def _without_content(self) -> PhasePlan:
        """Count what is asked of the judge once for all pairs: how it leans, and whether it can read canaries."""
        plan = PhasePlan("no content")
        n_read, n_written = self.bench.n_empty(list(self._asked.values()))
        plan.kinds["judge"].add(len(CONTENT_FREE) * (n_read + n_written))
        plan.kinds["judge"].add(0, len(CONTENT_FREE) * len(OPTIONS) * self.bench.n_canaries * bool(self._asked))
        plan.new_tokens = len(CONTENT_FREE) * n_written * self.config.judge.cot.max_tokens
        return plan

    def _phase(self, phase: Phase, name: str) -> PhasePlan:
        plan = PhasePlan(name)
        seed = Walk(phase, name, self.config, None, None, self.bench).seed  # type: ignore[arg-type]
        for prompt in self.divided.prompts("train") if phase.walks else ():
            surely_revised, may_be_revised = self._chains(plan, phase, prompt, seed)
            n_samples = phase.samples * (phase.samples - 1) // 2
            exact = min(n_samples, phase.max_pairs) if "samples" in phase.pairs else 0
            if "revision" not in phase.pairs:
                surely_revised = may_be_revised = 0
            self._judge(plan, prompt, exact + surely_revised, exact + may_be_revised)
            # An answer that stands in several comparisons is rewarded once.
            fewest = max(2 * bool(exact), 2 * surely_revised)
            most = min(2 * (exact + may_be_revised), phase.samples + may_be_revised)
            self._reward(plan, prompt, fewest, most)
        return plan

    def _chains(self, plan: PhasePlan, phase: Phase, prompt: Prompt, seed: int) -> tuple[int, int]:
        """Count answers, critiques and revisions of one prompt; return how many samples will, and may, be revised."""
        config, n_prompt, surely_revised, may_be_revised = self.config, _tokens(_text(prompt)), 0, 0
        plan.kinds["respond"].add(phase.samples)
        plan.read_tokens += phase.samples * n_prompt
        plan.new_tokens += phase.samples * config.respond.max_tokens
        for sample in range(phase.samples):
            surely = maybe = False
            for round_ in range(1, phase.revisions + 1):
                principle = draw(self.bench.principles, prompt, sample_index=sample, round=round_, seed=seed)
                if principle is None:
                    continue
                asked = principle.check is None
                plan.kinds["critique"].add(int(asked))
                sure = asked or config.revise.when == "always"
                plan.kinds["revise"].add(int(sure), 1)
                plan.new_tokens += asked * config.critique.max_tokens + config.revise.max_tokens
                surely, maybe = surely or sure, True
            surely_revised += surely
            may_be_revised += maybe
        return surely_revised, may_be_revised

    def _judge(self, plan: PhasePlan, prompt: Prompt, least: int, most: int) -> None:
        stand_in = Comparison(phase=plan.name, prompt_id=prompt.id, a_id="a", b_id="b", source="samples")
        asked = [p for p in self.bench.chosen(stand_in, prompt.domain) if p.check is None]
        self._asked |= {p.id: p for p in asked if most}
        n_read, n_written = self.bench.n_calls(asked)
        plan.kinds["judge"].add(least * (n_read + n_written), most * (n_read + n_written))
        canaries = 2 * self.bench.n_canaries * bool(asked)  # none where the wording alone raises the flag
        plan.kinds["judge"].add(0, most * canaries)
        pair = _tokens(_text(prompt)) + 2 * self.config.respond.max_tokens + 120 + _tokens(self.bench.few_shot)
        plan.read_tokens += most * (2 * pair + (n_read + n_written + canaries) * 60)
        plan.new_tokens += most * n_written * self.config.judge.cot.max_tokens

    def _reward(self, plan: PhasePlan, prompt: Prompt, least: int, most: int) -> None:
        """Count the rewards of so many different answers."""
        n = self.bench.n_rewards * any(p.check is None and p.applies_to(prompt.domain) for p in self.bench.principles)
        plan.kinds["judge"].add(least * n, most * n)
        plan.read_tokens += most * n * (_tokens(_text(prompt)) + self.config.respond.max_tokens)

    def _evaluation(self) -> PhasePlan:
        plan, section = PhasePlan("evaluate"), self.config.evaluate
        for prompt in self.divided.prompts("held_out"):
            plan.kinds["respond"].add(2 * section.samples)
            plan.kinds["likelihood"].add(3 * asks_likelihood(prompt, section.likelihoods))
            plan.new_tokens += 2 * section.samples * (section.max_tokens or self.config.respond.max_tokens)
            if section.judge:
                self._judge(plan, prompt, section.samples, section.samples)
                self._reward(plan, prompt, 2 * section.samples, 2 * section.samples)
        return plan

    def examples(self) -> list[dict[str, str]]:
        """Return three prompts as they will be sent: to the policy, for a critique, and to the judge."""
        prompt = next(self.divided.prompts("train"))
        shown = [("respond", opening(prompt, self.config.respond.system))]
        principle = next((p for p in self.bench.principles if p.critique), None)
        if principle is not None:
            stand_in = Turn("assistant", "(the policy's answer)")
            asked = self.templates["critique"].turns(request=principle.critique)
            shown.append(("critique", (*opening(prompt, self.config.respond.system), stand_in, *asked)))
        shown.append(("judge", self._judge_example(prompt)))
        return [{"stage": stage, "text": "\n\n".join(f"[{t.role}]\n{t.text}" for t in turns)} for stage, turns in shown]

    def _judge_example(self, prompt: Prompt) -> tuple[Turn, ...]:
        principle = next((p for p in self.bench.principles if p.compare), None)
        return self.templates["judgment"].turns(
            fence=self.bench.fence.of([_text(prompt)]),
            conversation=_text(prompt),
            answer_a="(one answer)",
            answer_b="(another answer)",
            few_shot=self.bench.few_shot,
            principle=principle.compare if principle else "(this constitution is decided by checks alone)",
        )


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


def _text(prompt: Prompt) -> str:
    return "\n\n".join(m.content for m in prompt.messages)


def _tokens(text: str) -> int:
    return int(len(text) / _CHARS_PER_TOKEN) + 1
