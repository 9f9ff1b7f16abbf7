"""Who judges: the run's judge, the members of a panel, or a reward model, each with an identity before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cai.config import ModelSection, RunConfig
from cai.engine.identity import model_identity
from cai.engine.model import Reply, Reward
from cai.model.fetch import resolve
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet, identity_of
from cai.stages.judge import Seat
from cai.store.calls import Recorded


class LazyReward:
    """A reward model that is loaded when it is first asked."""

    def __init__(self, section: ModelSection, meter: Meter) -> None:
        self._section, self._meter = section, meter
        self.identity = reward_identity(section)
        self._model: Any = None

    async def reward(self, request: Reward) -> Reply:
        """As Scorer."""
        if self._model is None:
            from cai.engine.reward import RewardModel

            with self._meter.stage("load reward model", 1):
                checkpoint = resolve(str(self._section.checkpoint))
                self._model = RewardModel.load(checkpoint, identity=self.identity, revision=self._section.revision)
        return await self._model.reward(request)


def reward_identity(section: ModelSection) -> str:
    """Return a reward model's identity without loading it."""
    return model_identity(resolve(str(section.checkpoint)), section.revision)


def seated(config: RunConfig) -> list[tuple[str, ModelSection | None]]:
    """Return (mode, model) of every judge that is not simply the run's; empty where that one judges alone."""
    judge = config.judge
    if judge.mode == "reward_model":
        return [("reward_model", judge.reward_model)]
    if judge.mode == "panel":
        return [(member.mode, member.model) for member in judge.panel.members]
    return []


def identities(config: RunConfig) -> dict[str, list[list[str]]]:
    """Return what the manifest keeps of the judges: `{"judges": [[mode, identity], …]}`, or nothing."""
    found = [[mode, _identity(mode, model, config)] for mode, model in seated(config)]
    return {"judges": found} if found else {}


def _identity(mode: str, model: ModelSection | None, config: RunConfig) -> str:
    if mode == "reward_model" and model is not None:
        return reward_identity(model)
    return identity_of(model or config.models.judge or config.models.policy, config.engine)


def seats(
    config: RunConfig, fleet: Fleet, meter: Meter, judge: Recorded, recorded: Callable[[Any], Recorded]
) -> tuple[Seat, ...]:
    """Return the judges that sit, each with the model it asks; `recorded` gives a model its store."""
    found = []
    for place, (mode, model) in enumerate(seated(config), 1):
        if mode == "reward_model" and model is not None:
            asked = recorded(LazyReward(model, meter))
        else:
            asked = judge if model is None else recorded(fleet.model(model, f"judge {place}"))
        found.append(Seat(mode, asked.identity, asked))
    return tuple(found)
