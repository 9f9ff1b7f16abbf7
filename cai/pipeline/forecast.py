"""What a run will ask beyond what is kept already: its walk gone through with the kept replies, and nothing sent.

Where a reply is missing a stand-in takes its place, so that what would follow from it is counted as well. Whether a
programmatic check will pass a text that is not written yet cannot be known; everything else is exact.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from typing import Any

from cai import canon, constitution, shipped
from cai.config import RunConfig
from cai.engine.model import Generate, Heard, Likelihood, Reply, Reward, ScoreGroup
from cai.executors import local
from cai.manifest import Manifest
from cai.pipeline import evaluation, judges, licence
from cai.pipeline.conduct import Conductor
from cai.pipeline.ingest import Divided
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.records import Prompt
from cai.store import schema
from cai.store.calls import Recorded, Siblings
from cai.store.store import Kept, find_replies
from cai.templates import FENCE_KEY, Templates


def forecast(config: RunConfig, near: Path | None) -> dict[str, Any] | None:
    """Return how many requests are kept and how many will be asked, by kind; None where no run is kept to look in.

    It ends with the first phase that trains a policy: what the next one will answer nobody knows. Nothing can be kept
    of a model that was never here, and none is looked up for this.
    """
    folder = Path(config.run.dir)
    stores = list(folder.resolve().parent.glob("*/store.sqlite")) if config.run.reuse else [folder / "store.sqlite"]
    if not (folder.resolve().parent / FENCE_KEY).exists() or not any(store.exists() for store in stores):
        return None
    if not judges.all_here(config):
        return None
    return local.run(_Foreseeing(config, near=near, meter=Meter()).foresee())


class _Foreseeing(Conductor):
    """Goes the way of a run without touching its folder."""

    async def foresee(self) -> dict[str, Any]:
        """Return what `forecast` tells."""
        with Divided(self.config, self.near) as divided, closing(_Overlay(self.folder, divided)) as store:
            self.store: Any = store
            self.siblings = Siblings(self.folder) if self.config.run.reuse else None
            try:
                return await self._foreseen()
            finally:
                if self.siblings:
                    self.siblings.close()

    async def _foreseen(self) -> dict[str, Any]:
        config = self.config
        self.manifest = _Unsaved(self.folder)
        self.constitution = constitution.load(shipped.find(config.constitution, near=self.near))
        self.templates = Templates(shipped.find(config.templates or "prompts", near=self.near))
        self.fleet = Fleet(config, self.folder, self.meter)
        self.manifest.save(prompts=self.store.divided.counts)
        policy = self._recorded(self.fleet.model(config.models.policy, "policy"))
        judge = self._recorded(self.fleet.model(config.models.judge or config.models.policy, "judge"))
        turns, seen = list(self.turns()), []
        if config.judge.check.enforce and self.manifest["judge_check"] is None:
            await licence.ask(self, judge, instead=lambda model: _StandIn(model.identity))
        await evaluation.answer(self, policy, "before")
        for turn in turns:
            seen.append(turn.name)
            await self._walk(turn, policy, judge)
            if turn.phase.train not in ("none", "reward"):
                break
        tally = self.meter.tally
        return {
            "phases": seen,
            "reused": tally.reused_by_kind,
            "asked": tally.by_kind,
            "not_foreseen": [turn.name for turn in turns[len(seen) :]],
        }

    def _recorded(self, model: Any) -> Recorded:
        stand_in: Any = _StandIn(model.identity)
        return Recorded(stand_in, self.store, self.meter.tally, siblings=self.siblings)


class _Unsaved(Manifest):
    """A manifest that is not written."""

    def save(self, **changes: Any) -> None:
        self.tree |= changes


class _Overlay:
    """A store that reads what an earlier session of the same run has kept and forgets what is put."""

    is_final = False

    def __init__(self, folder: Path, divided: Divided) -> None:
        path = folder / "store.sqlite"
        self.divided = divided
        self._kept = schema.connect(path, readonly=True) if path.exists() else None
        self._rewards: dict[str, Kept] = {}

    def close(self) -> None:
        if self._kept:
            self._kept.close()

    def replies(self, keys: Sequence[str]) -> dict[str, Kept]:
        found = find_replies(self._kept, keys) if self._kept else {}
        return found | {key: self._rewards[key] for key in keys if key in self._rewards}

    def prompts(self, side: Any) -> Iterator[Prompt]:
        return self.divided.prompts(side)

    def put_calls(self, kind: str, model: str, calls: Sequence[tuple[str, bytes, Reply]]) -> list[str]:
        if kind == "reward":  # the only request that comparisons share
            self._rewards |= {key: Kept(canon.dumps(reply.content()).decode(), "{}", "") for key, _, reply in calls}
        return [""] * len(calls)

    def walk_state(self, phase: str, prompt_id: str) -> None:
        return None

    def n_failed(self, phase: str, inputs: str) -> int:
        return 0

    async def committed(self) -> None:
        pass

    def together(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _forget(self, *_: Any, **__: Any) -> None:
        pass

    put_texts = put_record = put_decisions = put_walk = supersede = put_meta = _forget


class _StandIn:
    """A model that answers every request at once with something that no store holds."""

    _numbers = itertools.count()
    """Shared by all: no two of them write the same text."""

    def __init__(self, identity: str) -> None:
        self.identity = identity

    async def generate(self, request: Generate) -> Reply:
        return Reply(text=f"(text {next(self._numbers)} that is not written yet)", finish_reason="stop")

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        even = dict.fromkeys(group.options, -1.0)
        return [Reply(logprobs=even, outside=0.0) for _ in group.tails]

    async def likelihood(self, request: Likelihood) -> Reply:
        return Reply(logp=0.0)

    async def reward(self, request: Reward) -> Reply:
        return Reply(reward=0.0)
