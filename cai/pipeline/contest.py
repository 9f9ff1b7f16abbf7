"""A contest: several policies answer one suite's prompts, and the judge compares them.

Its folder is laid out as a run's, with `contest` in its manifest and no phases, so that whatever reads a run's store
and ledger reads a contest's too. Every answer and every judgment is kept under its request key: the same command again
asks nothing, and a contest that was cut short goes on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from cai import canon, constitution, fewshot, promptset, shipped
from cai.config import EngineSection, EvaluateSection, ModelSection, Phase, PromptsSection, RunConfig, RunSection
from cai.engine.command import shares_gpu_with_training
from cai.engine.model import Likelihood
from cai.errors import RejectedError, Stopped, UserError
from cai.evaluate.standings import phase_between, phase_of
from cai.evaluate.suite import Suite, check_domains
from cai.executors.local import for_each
from cai.manifest import Manifest, RunLock, id_of, keep_text, settle_config, write_atomically
from cai.model import code
from cai.pipeline import judges
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet, Lazy, identity_of
from cai.records import Prompt, Question, Response
from cai.stages.compare import compare_policies
from cai.stages.judge import Bench, judge, text_id_of
from cai.stages.judge.bench import judges_in_words
from cai.stages.respond import opening, respond
from cai.stages.walk import sampling_of
from cai.store.calls import Recorded, Siblings
from cai.store.store import Store
from cai.templates import Fence, Templates
from cai.trail import RunView

Answers = dict[str, dict[str, list[Response]]]
"""Responses by policy and prompt id."""


@dataclass(frozen=True)
class Contestant:
    """A policy with the name it goes by in tables."""

    name: str
    section: ModelSection


@dataclass(frozen=True)
class Entry:
    """Who contests in what, and where it is kept."""

    suite: Suite
    policies: tuple[Contestant, ...]
    """The first one is what the others are set against."""
    judge: ModelSection | None
    """None takes the first policy."""
    engine: EngineSection
    beside: Path
    """The folder in which the contest's own folder is made: beside other runs, whose answers it reuses."""
    near: Path | None = None
    """Where relative paths are also looked for."""
    templates: Path | None = None
    """The prompt templates; None looks for `prompts/` as a run does."""

    @property
    def judge_section(self) -> ModelSection:
        """The model that judges."""
        return self.judge or self.policies[0].section


class Contest:
    """Owns one contest's folder for as long as it works on it."""

    def __init__(self, entry: Entry, meter: Meter) -> None:
        self.entry, self.suite, self.meter = entry, entry.suite, meter
        names = [p.name for p in entry.policies]
        if len(set(names)) < len(names):
            raise UserError(f"policies need different names, found {names}; give them as NAME=CHECKPOINT")
        self.identities = [identity_of(p.section, entry.engine) for p in entry.policies]
        self._judge_identity = identity_of(entry.judge_section, entry.engine)
        named = [names, self.identities, self._judge_identity, self.suite.id]
        self.folder = entry.beside / f"eval-{self.suite.name}-{canon.content_id('contest', named)[3:13]}"
        self.failed = 0
        self._lock = RunLock(self.folder)

    async def run(self) -> Path:
        """Do the whole contest and return its folder. Raises what stops it; everything acknowledged is kept."""
        self._lock.acquire()
        try:
            self._prepare()
            return await self._work()
        finally:
            self._lock.release()

    # -- before anything is asked ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        entry, suite = self.entry, self.suite
        path = shipped.find(suite.constitution, near=entry.near)
        templates = Templates(entry.templates or shipped.find("prompts", near=entry.near))
        constitution.load(path)
        read = promptset.load(suite.prompts, near=entry.near)
        check_domains(suite, read.prompts)
        self.prompts, n_seen = self._unseen(read.prompts)
        config = self._config()
        trusting = {str(s.checkpoint or s.tokenizer) for s in self._sections() if s.trust_remote_code}
        trusted = sorted(trusting.union(judges.with_own_code(config)))
        for model in trusted:
            self.meter.note(code.said(model))
        self.manifest, sitting = Manifest(self.folder), judges.identities(config)
        settle_config(self.folder, config.model_dump(mode="json"), accept_changes=False)
        texts = {"constitution.yaml": path.read_text(encoding="utf-8")}
        texts |= {f"prompts/{name}.jinja": t.source for name, t in templates.by_name.items()}
        for name, text in texts.items():
            keep_text(self.folder, name, text, accept_changes=False)
        self.constitution, self.templates = constitution.load(self.folder / "constitution.yaml"), templates
        policies = [
            {"name": p.name, "checkpoint": p.section.checkpoint, "identity": identity}
            for p, identity in zip(entry.policies, self.identities, strict=True)
        ]
        self.manifest.save(
            name=self.folder.name,
            config_id=id_of(config.model_dump(mode="json")),
            constitution={"path": suite.constitution, "id": self.constitution.id, "name": self.constitution.name},
            templates=templates.ids,
            few_shot=text_id_of(fewshot.for_judge(suite.judge.few_shot, near=entry.near)),
            models={"policy": self.identities[0], "judge": self._judge_identity, **sitting},
            policies=policies,
            prompts={
                "read": read.n_read,
                "duplicates_folded": read.n_duplicates,
                "leaks_dropped": n_seen,
                "train": 0,
                "held_out": len(self.prompts),
            },
            contest={
                "trust_remote_code": trusted,
                "suite": suite.model_dump(mode="json"),
                "policies": policies,
                "judge": judges_in_words(suite.judge, sitting.get("judges", []), self._judge_identity),
            },
        )

    def _unseen(self, prompts: list[Prompt]) -> tuple[list[Prompt], int]:
        """Return the suite's prompts without those near a prompt that a policy was trained on, and how many those are.

        What a policy was trained on is known where its checkpoint lies in a run's folder.
        """
        trained = [p for section in self._sections() for p in _trained_on(section.checkpoint)]
        # Which of the suite's prompts are near one of training: the direction is the other way round than in a run.
        seen = promptset.overlaps(prompts, trained) if trained else {}
        left = [p for p in prompts if p.id not in seen]
        if not left:
            raise UserError(
                f"suite '{self.suite.name}': all {len(prompts)} prompts are near prompts that a policy was trained on; "
                "take another suite"
            )
        if self.suite.limit and len(left) > self.suite.limit:
            drawn = sorted(left, key=lambda p: canon.unit_interval(self.suite.seed, "limit", p.id))[: self.suite.limit]
            kept = {p.id for p in drawn}
            left = [p for p in left if p.id in kept]
        return left, len(seen)

    def _sections(self) -> list[ModelSection]:
        return [p.section for p in self.entry.policies]

    def _config(self) -> RunConfig:
        """Return the contest as a run's config: what was asked of whom, for whoever reads the folder."""
        suite, entry = self.suite, self.entry
        return RunConfig(
            run=RunSection(dir=str(self.folder), seed=suite.seed),
            constitution=suite.constitution,
            prompts=PromptsSection(sources=suite.prompts, held_out=1.0, held_out_limit=suite.limit),
            models={"policy": entry.policies[0].section, "judge": entry.judge},  # type: ignore[arg-type]
            engine=entry.engine,
            respond=suite.respond,
            judge=suite.judge,
            phases=(Phase(name="suite", samples=suite.samples),),
            evaluate=EvaluateSection(samples=suite.samples, judge="wins" in suite.measure),
        )

    # -- the work ----------------------------------------------------------------------------------------------------

    async def _work(self) -> Path:
        self.store, self._siblings = Store(self.folder / "store.sqlite"), Siblings(self.folder)
        self._fleet = Fleet(self._config(), self.folder, self.meter)
        try:
            self.store.clear_prompts()
            for position, prompt in enumerate(self.prompts):
                self.store.put_prompt(position, prompt, "held_out")
            await self._play()
        finally:
            await self._fleet.release_all()
            self._siblings.close()
            self.store.close()
        self._write_answers()
        return self.folder

    async def _play(self) -> None:
        """Let one policy after the other answer, the first one last, so that few servers are up at once.

        On one GPU it is one at a time; elsewhere the judge stays up.
        """
        policies = {p.name: self._model(p.section, p.name) for p in self.entry.policies}
        judge_model = self._model(self.entry.judge_section, "judge")
        kept = set() if shares_gpu_with_training("auto") else {judge_model.identity}
        first, *others = policies
        answers: Answers = {}
        for name in others:
            answers[name] = await self._answer(name, policies[name])
            await self._weigh(name, answers, policies[name])
            if policies[name].identity not in kept:
                await self._fleet.release(policies[name].model)
        answers[first] = await self._answer(first, policies[first])
        for name in policies:
            await self._weigh(name, answers, policies[first])
        if "wins" in self.suite.measure:
            if policies[first].identity != judge_model.identity:
                await self._fleet.release(policies[first].model)
            await self._compare(answers, judge_model)

    def _model(self, section: ModelSection, name: str) -> Recorded:
        model: Lazy = self._fleet.model(section, name)
        return self._recorded(model)

    def _recorded(self, model: Any) -> Recorded:
        return Recorded(model, self.store, self.meter.tally, siblings=self._siblings)

    async def _answer(self, name: str, policy: Recorded) -> dict[str, list[Response]]:
        suite, found = self.suite, dict[str, list[Response]]()

        async def one(prompt: Prompt) -> None:
            found[prompt.id] = await respond(
                prompt,
                policy,
                phase=phase_of(name),
                samples=suite.samples,
                sampling=sampling_of(suite.respond),
                system=suite.respond.system,
                seed=canon.seed_of(suite.seed, "evaluate"),
            )
            for response in found[prompt.id]:
                self.store.put_record(response, prompt_id=prompt.id, phase=phase_of(name))

        await self._each(phase_of(name), one)
        return found

    async def _weigh(self, name: str, answers: Answers, policy: Recorded) -> None:
        """Ask how likely the first answers of `name` are under a policy: itself, or the first one."""
        if "likelihood" not in self.suite.measure:
            return

        async def one(prompt: Prompt) -> None:
            for response in answers[name].get(prompt.id, [])[:1]:
                await policy.likelihood(Likelihood(opening(prompt, self.suite.respond.system), response.text))

        await self._each(f"evaluate likelihood of {name}", one)

    async def _compare(self, answers: Answers, judge_model: Recorded) -> None:
        bench = self._bench(judge_model)
        for principle in self.constitution.principles:
            question: Question = bench.question(principle)
            self.store.put_record(question)
        for one, other in combinations([p.name for p in self.entry.policies], 2):
            await self._compare_two(one, other, answers, judge_model, bench)

    async def _compare_two(self, one: str, other: str, answers: Answers, judge_model: Recorded, bench: Bench) -> None:
        phase = phase_between(one, other)

        async def work(prompt: Prompt) -> None:
            before, after = (answers[name].get(prompt.id, []) for name in (one, other))
            if not before or not after:
                return
            comparisons = compare_policies(prompt, before, after, phase=phase)
            judged = await asyncio.gather(
                *(
                    judge(c, prompt, b.text, a.text, judge_model, bench)
                    for c, b, a in zip(comparisons, before, after, strict=True)
                )
            )
            for comparison, judgments in zip(comparisons, judged, strict=True):
                self.store.put_record(comparison, prompt_id=prompt.id, phase=phase)
                self.store.put_decisions(judgments)

        await self._each(phase, work)

    def _bench(self, judge_model: Recorded) -> Bench:
        settings = self.suite.judge
        return Bench(
            principles=self.constitution.principles,
            templates=self.templates,
            settings=settings,
            fence=Fence.beside(self.folder),
            judge_identity=judge_model.identity,
            seed=self.suite.seed,
            few_shot=fewshot.for_judge(settings.few_shot, near=self.entry.near),
            seats=judges.seats(self._config(), self._fleet, self.meter, judge_model, self._recorded),
        )

    async def _each(self, phase: str, work: Callable[[Prompt], Awaitable[None]]) -> None:
        """Do `work` for every prompt; one that a server will never accept is counted and left out."""
        with self.meter.stage(phase, len(self.prompts)) as stage:

            async def one(prompt: Prompt) -> None:
                try:
                    await work(prompt)
                except RejectedError as error:
                    stage.failed += 1
                    self.failed += 1
                    self.store.put_walk(phase, prompt.id, "", "failed", str(error))
                    if stage.failed > max(20, len(self.prompts) / 2):
                        raise Stopped(f"{stage.failed} prompts failed in '{phase}'; the last one: {error}") from error
                else:
                    self.store.put_walk(phase, prompt.id, "", "done")
                await self.store.committed()
                stage.done += 1

            await for_each(self.prompts, one, in_flight=self.entry.engine.prompts_in_flight)

    def _write_answers(self) -> None:
        """Write every answer with its id as `answers.jsonl`, which a scorer can read and give scores to."""
        lines = []
        with RunView(self.folder) as run:
            for _, prompt in run.prompts("held_out"):
                messages = [m.model_dump() for m in prompt.messages]
                for contestant in self.entry.policies:
                    for r in run.records(phase_of(contestant.name), prompt.id).get("response", []):
                        row = {"id": r.id, "policy": contestant.name, "prompt": messages, "completion": r.text}
                        lines.append(canon.dumps(row) + b"\n")
        write_atomically(self.folder / "answers.jsonl", b"".join(lines))


def _trained_on(checkpoint: str | None) -> Sequence[Prompt]:
    """Return the training prompts of the run whose folder a checkpoint lies in; none where it lies in no run's."""
    if checkpoint is None:
        return ()
    path = Path(checkpoint).expanduser()
    for folder in path.resolve().parents if path.is_dir() else ():
        if (folder / "manifest.json").is_file() and (folder / "store.sqlite").is_file():
            with RunView(folder) as run:
                return [prompt for _, prompt in run.prompts("train")]
    return ()


def read_scores(path: str | Path) -> dict[str, float]:
    """Return {answer id: score} of a JSONL file of rows with `id` and `score` (or `reward`). UserError has the line."""
    scores = {}
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}); expected JSONL rows with 'id' and 'score'") from error
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            scores[str(row["id"])] = float(row["score"] if "score" in row else row["reward"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}:{number}: expected an object with 'id' and 'score' ({error!r})") from error
    return scores
