"""A run folder as a finished run leaves it, made without any model: known answers, known verdicts.

folder = make_run(tmp_path / "run", judge="always-a", after="collapsed")
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cai import canon, checks, constitution, shipped
from cai.config import RunConfig
from cai.engine.model import Likelihood, Reply, request_key
from cai.manifest import Manifest, id_of, keep_text, settle_config
from cai.records import Comparison, Critique, Decision, Judgment, Message, Prompt, Response, Revision
from cai.stages.compare import compare_policies
from cai.stages.judge import ORDERS, Bench
from cai.stages.respond import opening
from cai.store import ledger
from cai.store.store import Store
from cai.trail import RunView

CONSTITUTION = """\
schema: 1
name: short-and-plain
description: Short, finished answers that begin at once.
principles:
  - id: brief
    title: Brief and finished
    weight: 2.0
    revision: Rewrite the answer in one or two short sentences.
    check: {max_words: 30, ends_sentence: true}
  - id: no-opener
    title: Starts with the answer itself
    revision: Take the opening phrase out.
    check: {must_not_match: ['(?i)^(sure|certainly)']}
  - id: to-the-point
    title: Answers what was asked
    critique: Does the answer do what was asked?
    revision: Answer what was asked.
    compare: Which answer, A or B, does more directly what the person asked?
"""

QUESTIONS = (
    "How do I cook rice so that it doesn't stick?",
    "Why is the sky blue?",
    "How do I fold a fitted sheet?",
    "What is a good way to learn ten new words a day?",
    "How do I stop my glasses from fogging up?",
    "Why does bread go stale?",
    "How can I remember names?",
    "What does a thermostat do?",
    "How do I remove a stuck ring?",
    "Why do cats purr?",
    "How do I water a cactus?",
    "What is compound interest?",
)
PLACES = ("at home", "in winter", "on a small budget", "with children around", "before work", "in a hurry")
_FILLER = (
    "There are a few things worth knowing about this before you begin",
    "Many people find it helpful to take it slowly",
    "It depends on what you have at hand and how much time there is",
    "You can also ask somebody who has done it before",
    "Another option is to try a smaller version of the same thing first",
    "Keep in mind that practice makes it easier",
)
_TIPS = (
    "Rinse it first",
    "Use cold water",
    "Start with the corners",
    "Warm it gently",
    "Write it down",
    "Cut it in half",
    "Wait ten minutes",
    "Check it every day",
    "Use less than you think",
    "Say it aloud",
    "Leave the lid on",
)

JudgeRule = Literal["fair", "always-a", "invalid"]


@dataclass(frozen=True)
class Policy:
    """How a made-up policy answers."""

    identity: str
    passing: float
    """Share of its answers that keep every check."""
    collapsed: bool = False

    def answer(self, prompt: Prompt, sample: int) -> tuple[str, str]:
        """Return (text, finish reason)."""
        dice = random.Random(f"{self.identity} {prompt.id} {sample}")
        if self.collapsed:
            return "Yes, do that now.", "stop"
        tips = dice.sample(_TIPS, 3)
        if dice.random() < self.passing:
            return f"{tips[0]} and {tips[1].lower()}, then {tips[2].lower()}.", "stop"
        filler = dice.sample(_FILLER, 3)
        text = f"{filler[0]}. {tips[0]}, and {tips[1].lower()}. {filler[1]}. {filler[2]}. {tips[2]}"
        if dice.random() < 0.4:
            return f"Sure! {text}.", "stop"
        return f"{text} and", "length"


def config_of(folder: Path, **changes: Any) -> RunConfig:
    """Return a run's config with some top-level entries replaced."""
    tree: dict[str, Any] = {
        "run": {"dir": f"runs/{folder.name}", "seed": 3},
        "constitution": "constitution.yaml",
        "prompts": {"sources": [{"path": "prompts.jsonl"}]},
        "models": {"policy": {"checkpoint": "tiny-135m"}},
        "phases": [
            {"name": "sl", "samples": 1, "revisions": 1, "pairs": ["revision"], "train": "sft"},
            {"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"},
        ],
        "evaluate": {"samples": 2},
    }
    return RunConfig.model_validate(tree | changes)


def make_run(
    folder: Path,
    *,
    n_train: int = 24,
    n_held_out: int = 30,
    judge: JudgeRule = "fair",
    after: Literal["better", "same", "collapsed"] = "better",
    arms: tuple[str, ...] = ("before", "after"),
    phases: tuple[str, ...] = ("sl", "rl"),
    done: bool = True,
    likelihoods: bool = True,
    prompts: Iterable[str] | None = None,
    rewrite: Callable[[str], str] = lambda text: text,
    config: dict[str, Any] | None = None,
    identity: str = "tiny-135m@main",
) -> Path:
    """Make a run folder and return it.

    `arms` and `phases` say how far the run has come; `prompts` replaces the questions and `rewrite` changes every
    answer; `config` replaces top-level entries of the config; `identity` is the model that judges and answers first.
    """
    maker = _Maker(folder, config_of(folder, **(config or {})), judge, rewrite, identity)
    base = Policy("tiny-135m@main", passing=0.2)
    passing = 0.2 if after == "same" else 0.7
    last = Policy("runs/x/checkpoints/rl/model", passing, collapsed=after == "collapsed")
    texts = list(prompts) if prompts else [f"{q} ({p})" for p in PLACES for q in QUESTIONS]
    maker.put_prompts(texts, n_train, n_held_out)
    for name in phases:
        maker.put_phase(name, base)
    answers = {arm: maker.put_answers(arm, base if arm == "before" else last) for arm in arms}
    if len(answers) == 2:
        maker.put_evaluation(answers, base if likelihoods else None, last)
    maker.close(base, last if "after" in arms else None, phases, done)
    return folder


class _Maker:
    def __init__(
        self, folder: Path, config: RunConfig, judge: JudgeRule, rewrite: Callable[[str], str], identity: str
    ) -> None:
        folder.mkdir(parents=True)
        self.folder, self.config, self.rule, self.rewrite = folder, config, judge, rewrite
        settle_config(folder, config.model_dump(mode="json"), accept_changes=False)
        keep_text(folder, "constitution.yaml", CONSTITUTION, accept_changes=False)
        shutil.copytree(shipped.find("prompts"), folder / "prompts", ignore=shutil.ignore_patterns("sets"))
        self.manifest = Manifest(folder)
        self.constitution = constitution.load(folder / "constitution.yaml")
        self.manifest.save(
            name=folder.name,
            config_id=id_of(config.model_dump(mode="json")),
            constitution={"path": "constitution.yaml", "id": self.constitution.id, "name": self.constitution.name},
            models={"policy": identity, "judge": identity},
        )
        self.store = Store(folder / "store.sqlite")
        self.bench: Bench = RunView(folder).bench
        for principle in self.constitution.principles:
            self.store.put_record(self.bench.question(principle))
        self.train: list[Prompt] = []
        self.held_out: list[Prompt] = []

    def put_prompts(self, texts: list[str], n_train: int, n_held_out: int) -> None:
        made = [
            Prompt(messages=(Message(role="user", content=text),), domain="everyday", source_id=f"everyday-{i:03d}")
            for i, text in enumerate(texts)
        ]
        self.train, self.held_out = made[:n_train], made[n_train : n_train + n_held_out]
        for position, prompt in enumerate([*self.train, *self.held_out]):
            self.store.put_prompt(position, prompt, "train" if position < len(self.train) else "held_out")
        counts = {"read": len(texts) + 3, "duplicates_folded": 2, "leaks_dropped": 1}
        self.manifest.save(prompts=counts | {"train": len(self.train), "held_out": len(self.held_out)})

    def responses(self, phase: str, prompt: Prompt, policy: Policy, n: int) -> list[Response]:
        made = []
        for i in range(n):
            text, reason = policy.answer(prompt, i)
            text = self.rewrite(text)
            made.append(
                Response(
                    phase=phase,
                    prompt_id=prompt.id,
                    sample_index=i,
                    call_key=canon.content_id("call", [phase, i, text]),
                    text=text,
                    finish_reason=reason,
                    n_tokens=len(text.split()) + 3,
                )
            )
        return made

    def put_phase(self, name: str, policy: Policy) -> None:
        section = next(p for p in self.config.phases if p.name == name)
        for prompt in self.train:
            answers = self.responses(name, prompt, policy, section.samples)
            records: list[Any] = list(answers)
            pairs: list[tuple[Any, Any]] = [(answers[0], answers[1])] if len(answers) > 1 else []
            if section.revisions:
                records += self._revised(prompt, answers[0], pairs)
            source = "revision" if section.revisions else "samples"
            made = [Comparison(phase=name, prompt_id=prompt.id, a_id=a.id, b_id=b.id, source=source) for a, b in pairs]
            self.put_walk(name, prompt, [*records, *made])
            for comparison, (a, b) in zip(made, pairs, strict=True):
                self.store.put_decisions(self.judged(comparison, prompt, a.text, b.text))
        self.manifest["phases"][name] = {"state": "walked"}
        if section.train != "none":
            self._train(name, section.train)

    def _revised(self, prompt: Prompt, answer: Response, pairs: list[tuple[Any, Any]]) -> list[Any]:
        critique = Critique(
            answer_id=answer.id,
            principle_id="brief",
            round=1,
            text_id="t",
            call_key=None,
            text="It is too long.",
            passed=False,
        )
        text = self.rewrite(Policy("reviser", passing=1.0).answer(prompt, 0)[0])
        revision = Revision(
            critique_id=critique.id,
            answer_id=answer.id,
            text_id="t",
            call_key="k",
            text=text,
            finish_reason="stop",
            n_tokens=12,
        )
        pairs.append((answer, revision))
        return [critique, revision]

    def _train(self, name: str, method: str) -> None:
        entry = {
            "method": method,
            "n_rows": len(self.train),
            "rows_id": canon.content_id("rows", name),
            "base": "tiny-135m",
        }
        self.manifest["phases"][name] |= {"state": "trained", "train": entry}
        dice, out = random.Random(name), self.folder / "checkpoints" / name
        out.mkdir(parents=True)
        start, floor = (2.4, 1.3) if method == "sft" else (0.69, 0.35)
        rows = []
        for step in range(1, 37):
            row = {
                "step": step,
                "steps": 36,
                "lr": 1e-4,
                "loss": floor + (start - floor) * 0.92**step + dice.gauss(0, 0.04),
            }
            rows.append(row if method == "sft" else row | {"accuracy": min(1.0, 0.5 + step / 90 + dice.gauss(0, 0.05))})
        (out / "curve.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 37, "lo')

    def put_walk(self, phase: str, prompt: Prompt, records: list[Any]) -> None:
        for record in records:
            self.store.put_record(record, prompt_id=prompt.id, phase=phase)
        self.store.put_walk(phase, prompt.id, "inputs", "done")

    def put_answers(self, arm: str, policy: Policy) -> dict[str, list[Response]]:
        phase, made = f"evaluate/{arm}", {}
        for prompt in self.held_out:
            made[prompt.id] = self.responses(phase, prompt, policy, self.config.evaluate.samples)
            self.put_walk(phase, prompt, made[prompt.id])
        return made

    def put_evaluation(self, answers: dict[str, dict[str, list[Response]]], base: Policy | None, last: Policy) -> None:
        for prompt in self.held_out:
            before, after = answers["before"][prompt.id], answers["after"][prompt.id]
            made = compare_policies(prompt, before, after, phase="evaluate") if self.config.evaluate.judge else []
            self.put_walk("evaluate", prompt, list(made))
            for comparison, a, b in zip(made, before, after, strict=False):
                self.store.put_decisions(self.judged(comparison, prompt, a.text, b.text))
            if base:
                drift = 3.0 if last.collapsed else 0.2
                self._likelihood(base.identity, prompt, after[0], -1.0 - drift)
                self._likelihood(last.identity, prompt, after[0], -0.9)
                self._likelihood(base.identity, prompt, before[0], -1.0)

    def _likelihood(self, identity: str, prompt: Prompt, answer: Response, per_token: float) -> None:
        described = Likelihood(opening(prompt, None), answer.text).describe(identity)
        reply = Reply(logp=per_token * answer.n_tokens, n_completion=answer.n_tokens)
        self.store.put_call(request_key(described), described, reply)

    def judged(self, comparison: Comparison, prompt: Prompt, a: str, b: str) -> list[Decision]:
        made: list[Decision] = []
        for principle in self.bench.chosen(comparison, prompt.domain):
            question = self.bench.question(principle)
            for order in ("ab",) if principle.check else ORDERS:
                p_a = checks.compare(principle.check, a, b) if principle.check else self._p_a(order, prompt, a, b)
                made.append(
                    Judgment(
                        comparison_id=comparison.id,
                        question_id=question.id,
                        order=order,
                        call_key=None if principle.check else "k",
                        reply_id=None if principle.check else "r",
                        verdict="invalid" if p_a is None else "tie" if p_a == 0.5 else "a" if p_a > 0.5 else "b",
                        p_a=p_a,
                        reason="outside_options" if p_a is None else None,
                    )
                )
        return made

    def _p_a(self, order: str, prompt: Prompt, a: str, b: str) -> float | None:
        """A fair judge prefers the shorter answer, and contradicts itself on one prompt in ten."""
        if self.rule == "invalid":
            return None
        if self.rule == "always-a":
            return 0.9 if order == "ab" else 0.1
        p_a = 0.8 if (len(a), a) < (len(b), b) else 0.2
        wavers = canon.unit_interval("waver", prompt.id) < 0.1
        return 1 - p_a if wavers and order == "ba" else p_a

    def close(self, base: Policy, last: Policy | None, phases: tuple[str, ...], done: bool) -> None:
        self.store.flush()
        head = ledger.head(self.store.connection)
        self.store.close()
        trained = [p for p in phases if "train" in self.manifest["phases"][p]]
        policies = [{"name": "base", "checkpoint": "tiny-135m", "identity": base.identity}]
        for name in trained:
            identity = last.identity if last and name == trained[-1] else f"runs/x/checkpoints/{name}/model"
            policies.append({"name": name, "checkpoint": f"checkpoints/{name}/model", "identity": identity})
        session = {
            "ended": "2030-01-02T03:04:05Z",
            "seconds": 431.5,
            "made": 812,
            "reused": 20,
            "prompt_tokens": 91_000,
            "completion_tokens": 30_500,
            "by_kind": {"generate": 300, "score": 482, "likelihood": 30},
            "timings": [{"stage": "walk sl", "seconds": 61.2}, {"stage": "train sl (sft, 24 rows)", "seconds": 122.0}],
        }
        result = {"exit_code": 0, "stale": []}
        mark = {"time": "2030-01-02T03:04:05Z", "head": [head.count, head.hash], "result": result}
        self.manifest.save(
            phases=self.manifest["phases"],
            policies=policies if trained else [],
            sessions=[session, session | {"seconds": 12.0, "made": 0, "timings": []}],
            done=mark if done else None,
        )
