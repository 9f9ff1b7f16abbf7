"""The judge at the workshop's desk: asked as a run asks it, and every answer kept, so that asking again is free."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import fewshot, shipped, yamlfile
from cai.config import RunConfig, config_dir
from cai.constitution import Principle
from cai.manifest import RunLock
from cai.model.fetch import cache_folder
from cai.pipeline import judges
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.stages.judge import Bench, Seat
from cai.store.calls import Recorded, Siblings
from cai.store.store import Store
from cai.templates import Fence, Templates, Turn

FOLDER = ".workshop"
"""The folder beside the runs where the workshop keeps its calls. Runs look there as they look into each other."""
DEFAULT_JUDGE = "smollm2-135m-instruct"


@dataclass(frozen=True)
class Desk:
    """A judge that can be asked, and what it is asked with."""

    judge: Recorded
    config: RunConfig
    templates: Templates
    fence: Fence
    few_shot: str
    shots: tuple[Turn, ...]
    meter: Meter
    seats: tuple[Seat, ...] = ()
    """The members of a panel, or the reward model; empty where the judge judges alone."""
    learnt: dict[Any, float | None] = field(default_factory=dict)
    """What pairs without content have taught of the judge, whichever principles it is asked about."""

    def bench(self, principles: Sequence[Principle], *, canaries: bool = True) -> Bench:
        """Return what a judge of these principles needs; all of them are asked, whatever the config draws.

        Without `canaries` pairs are not watched for attempts to steer the judge: an editor's own examples make none.
        """
        changed = {"principles": "all"} | ({} if canaries else {"canary": False})
        return Bench(
            principles=tuple(principles),
            templates=self.templates,
            settings=self.config.judge.model_copy(update=changed),
            fence=self.fence,
            judge_identity=self.judge.identity,
            seed=self.config.run.seed,
            few_shot=self.few_shot,
            seats=self.seats,
            learnt=self.learnt,
        )


def config_for(constitution: str, config: str | None, overrides: Sequence[str]) -> tuple[RunConfig, Path | None]:
    """Return the config whose judge is asked, and the folder its relative paths are also tried in.

    Without a config file it is the default: the embedded model in its shipped settings.
    """
    if config is not None:
        found = shipped.find(config)
        return yamlfile.load(found, RunConfig, overrides=list(overrides)).value, config_dir(found)
    tree = {
        "run": {"dir": "runs/workshop"},
        "constitution": constitution,
        "prompts": {"sources": [{"path": "none"}]},
        "models": {"policy": {"checkpoint": DEFAULT_JUDGE}},
        "phases": [{"name": "workshop"}],
    }
    loaded = yamlfile.read(json.dumps(tree), RunConfig, source_name="default config", overrides=list(overrides))
    return loaded.value, None


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a run's config with `a.b=c` overrides applied. Raises ProblemsError."""
    if not overrides:
        return config
    text = config.model_dump_json(exclude_none=True)
    return yamlfile.read(text, RunConfig, source_name="the run's config", overrides=list(overrides)).value


def workbench() -> Path:
    """Return the folder where calls are kept that belong to no run."""
    return cache_folder() / "workshop"


@asynccontextmanager
async def at_desk(
    config: RunConfig,
    folder: Path,
    *,
    near: Path | None = None,
    templates: Templates | None = None,
    fence: Fence | None = None,
    meter: Meter | None = None,
    beside: bool = False,
) -> AsyncIterator[Desk]:
    """Yield the config's judge. Its calls are kept in `folder`; with `beside`, runs beside `folder` lend theirs.

    Only one process works in a folder at a time; a second one is refused with the first one's pid. Servers that were
    started are stopped at the end.
    """
    meter = meter or Meter()
    lock = RunLock(folder)
    lock.acquire()
    store = Store(folder / "store.sqlite")
    siblings = Siblings(folder) if beside else None
    fleet = Fleet(config, folder, meter)

    def recorded(model: Any) -> Recorded:
        return Recorded(model, store, meter.tally, siblings=siblings)

    try:
        judge = recorded(fleet.model(config.models.judge or config.models.policy, "judge"))
        yield Desk(
            judge=judge,
            config=config,
            templates=templates or Templates(shipped.find(config.templates or "prompts", near=near)),
            fence=fence or Fence.beside(folder),
            few_shot=fewshot.for_judge(config.judge.few_shot, near=near),
            shots=fewshot.for_critic(config.critique.few_shot, near=near),
            meter=meter,
            seats=judges.seats(config, fleet, meter, judge, recorded),
        )
    finally:
        await fleet.release_all()
        if siblings:
            siblings.close()
        store.close()
        lock.release()
