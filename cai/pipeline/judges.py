"""Who judges: the run's judge, the members of a panel, or a reward model, each with an identity before it is loaded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cai.config import ModelSection, RunConfig
from cai.engine.identity import model_identity
from cai.engine.model import Reply, Reward
from cai.model.fetch import resolve
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet, identity_of, is_here
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
                section = self._section
                how = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
                self._model = RewardModel.load(resolve(str(section.checkpoint)), identity=self.identity, **how)
        return await self._model.reward(request)


def reward_identity(section: ModelSection) -> str:
    """Return a reward model's identity without loading it."""
    trusted = section.trust_remote_code
    return model_identity(resolve(str(section.checkpoint)), section.revision, trust_remote_code=trusted)


def seated(config: RunConfig) -> list[tuple[str, ModelSection | None]]:
    """Return (mode, model) of every judge that is not simply the run's; empty where that one judges alone."""
    judge = config.judge
    if judge.mode == "reward_model":
        return [("reward_model", judge.reward_model)]
    if judge.mode == "panel":
        return [(member.mode, member.model) for member in judge.panel.members]
    return []


def all_here(config: RunConfig) -> bool:
    """Return whether the identity of every model of a run can be told without a network."""
    models = [(config.models.policy, config.engine), (config.models.judge or config.models.policy, config.engine)]
    models += [(m, None if mode == "reward_model" else config.engine) for mode, m in seated(config) if m is not None]
    return all(is_here(model, engine) for model, engine in models)


def with_own_code(config: RunConfig) -> list[str]:
    """Return the models of a run whose own code is run, by their names in the config."""
    models = [config.models.policy, config.models.judge, *(model for _, model in seated(config))]
    return sorted({str(m.checkpoint or m.tokenizer) for m in models if m is not None and m.trust_remote_code})


JUDGE = "judge"
"""Stands for the identity of the run's judge where nobody is asked."""


def unasked(config: RunConfig) -> tuple[Seat, ...]:
    """Return the judges as their config names them: nothing is looked up or loaded, and none can be asked."""
    plain = config.models.judge or config.models.policy
    sit = seated(config) or [(config.judge.mode, None)]
    return tuple(Seat(mode, JUDGE if model in (None, plain) else str(model)) for mode, model in sit)


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
