"""A judge asked by itself, outside a run: its server, a store for what it says, and all it is asked with.

The store lies in a folder beside the runs or in the user's cache, so that the same question is never asked twice.
"""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cai import fewshot, shipped, yamlfile
from cai.config import RunConfig
from cai.constitution import Principle
from cai.manifest import RunLock
from cai.pipeline import judges
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.stages.judge import Bench, Seat
from cai.store.calls import Recorded, Siblings
from cai.store.store import Store
from cai.templates import Fence, Templates, Turn


@dataclass(frozen=True)
class Hearing:
    """One judge and all it needs, open for as long as the hearing lasts."""

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
    forgetful: Callable[[], tuple[Recorded, tuple[Seat, ...]]] | None = None
    """Returns the judge, and its seats, with no memory of what they were asked before."""

    def bench(
        self, principles: Sequence[Principle], *, draws: bool = False, canaries: bool = True, seed: int | None = None
    ) -> Bench:
        """Return what a judge of these principles needs; all of them are asked, unless the config `draws` some.

        Without `canaries` pairs are not watched for attempts to steer the judge: an editor's own examples make none.
        """
        changed = ({} if draws else {"principles": "all"}) | ({} if canaries else {"canary": False})
        return Bench(
            principles=tuple(principles),
            templates=self.templates,
            settings=self.config.judge.model_copy(update=changed),
            fence=self.fence,
            judge_identity=self.judge.identity,
            seed=self.config.run.seed if seed is None else seed,
            few_shot=self.few_shot,
            seats=self.seats,
            learnt=self.learnt,
        )

    def afresh(self) -> Hearing:
        """Return this hearing with a judge that remembers nothing it was asked before."""
        assert self.forgetful is not None, "only an opened hearing has another memory to give"
        judge, seats = self.forgetful()
        return replace(self, judge=judge, seats=seats, learnt={})


@asynccontextmanager
async def hearing(
    config: RunConfig,
    folder: Path,
    *,
    near: Path | None = None,
    templates: Templates | None = None,
    fence: Fence | None = None,
    meter: Meter | None = None,
    siblings: bool = False,
) -> AsyncIterator[Hearing]:
    """Yield the config's judge. Its calls are kept in `folder`; with `siblings`, runs beside `folder` lend theirs.

    Only one process works in a folder at a time; a second one is refused with the first one's pid. Servers that were
    started are stopped at the end.
    """
    meter = meter or Meter()
    async with AsyncExitStack() as stack:
        lock = RunLock(folder)
        lock.acquire()
        stack.callback(lock.release)
        store = Store(folder / "store.sqlite")
        stack.callback(store.close)
        lenders = Siblings(folder) if siblings else None
        if lenders:
            stack.callback(lenders.close)
        fleet = Fleet(config, folder, meter)
        stack.push_async_callback(fleet.release_all)

        def seated(recorded: Callable[[Any], Recorded]) -> tuple[Recorded, tuple[Seat, ...]]:
            judge = recorded(fleet.model(config.models.judge or config.models.policy, "judge"))
            return judge, judges.seats(config, fleet, meter, judge, recorded)

        def forgetful() -> tuple[Recorded, tuple[Seat, ...]]:
            again = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="cai-again-")))
            empty = Store(again / "store.sqlite")
            stack.callback(empty.close)
            return seated(lambda model: Recorded(model, empty, meter.tally))

        judge, seats = seated(lambda model: Recorded(model, store, meter.tally, siblings=lenders))
        yield Hearing(
            judge=judge,
            config=config,
            templates=templates or Templates(shipped.find(config.templates or "prompts", near=near)),
            fence=fence or Fence.beside(folder),
            few_shot=fewshot.for_judge(config.judge.few_shot, near=near),
            shots=fewshot.for_critic(config.critique.few_shot, near=near),
            meter=meter,
            seats=seats,
            forgetful=forgetful,
        )


def beside(config: RunConfig, name: str) -> Path:
    """Return the folder `name` beside the config's run."""
    return Path(config.run.dir).resolve().parent / name


def overridden(config: RunConfig, overrides: Sequence[str]) -> RunConfig:
    """Return a run's config with `a.b=c` overrides applied. Raises ProblemsError."""
    if not overrides:
        return config
    text = config.model_dump_json(exclude_none=True)
    return yamlfile.read(text, RunConfig, source_name="the run's config", overrides=list(overrides)).value
