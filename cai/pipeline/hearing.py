"""A judge called by itself, without a run: its server, a store for what it says, and the bench it sits at.

The store lies in a folder beside the runs, so that a run finds what was said here, and the same question is never
asked twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import fewshot, shipped
from cai.config import RunConfig
from cai.constitution import Principle
from cai.manifest import RunLock
from cai.pipeline import judges
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.stages.judge import Bench
from cai.store.calls import Recorded, Siblings
from cai.store.store import Store
from cai.templates import Fence, Templates


@dataclass
class Hearing:
    """One judge and all it needs, open for as long as the hearing lasts."""

    config: RunConfig
    near: Path | None
    meter: Meter
    folder: Path
    fleet: Fleet
    store: Store
    siblings: Siblings | None = None
    _stack: ExitStack = field(default_factory=ExitStack)

    def sit(self, *principles: Principle, seed: int | None = None, afresh: bool = False) -> tuple[Bench, Recorded]:
        """Return the bench and the judge. `afresh` gives a judge that remembers nothing it was asked before."""
        recorded = self._forgetful() if afresh else self._recorded
        judge = recorded(self.fleet.model(self.config.models.judge or self.config.models.policy, "judge"))
        bench = Bench(
            principles=principles,
            templates=Templates(shipped.find(self.config.templates or "prompts", near=self.near)),
            settings=self.config.judge,
            fence=Fence.beside(self.folder),
            judge_identity=judge.identity,
            seed=self.config.run.seed if seed is None else seed,
            few_shot=fewshot.for_judge(self.config.judge.few_shot, near=self.near),
            seats=judges.seats(self.config, self.fleet, self.meter, judge, recorded),
        )
        return bench, judge

    def _recorded(self, model: Any) -> Recorded:
        return Recorded(model, self.store, self.meter.tally, siblings=self.siblings)

    def _forgetful(self) -> Callable[[Any], Recorded]:
        folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="cai-again-")))
        store = Store(folder / "store.sqlite")
        self._stack.callback(store.close)
        return lambda model: Recorded(model, store, self.meter.tally)


@asynccontextmanager
async def hearing(
    config: RunConfig, near: Path | None, meter: Meter, folder: Path, *, remember: bool = True
) -> AsyncIterator[Hearing]:
    """Open a hearing in `folder`; with `remember` what runs beside it have asked is not asked again."""
    lock = RunLock(folder)
    lock.acquire()
    try:
        store = Store(folder / "store.sqlite")
        siblings = Siblings(folder) if remember and config.run.reuse else None
        held = Hearing(config, near, meter, folder, Fleet(config, folder, meter), store, siblings)
        try:
            with held._stack:
                yield held
        finally:
            await held.fleet.release_all()
            if siblings:
                siblings.close()
            store.close()
    finally:
        lock.release()


def beside(config: RunConfig, name: str) -> Path:
    """Return the folder `name` beside the config's run."""
    return Path(config.run.dir).resolve().parent / name
