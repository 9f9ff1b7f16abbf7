"""What a training needs that has prompts answered: rewards, held-out prompts, and a judge that scores the answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.config import RlSection, TrainerSection
from cai.engine import sleeping
from cai.engine.command import shares_gpu_with_training
from cai.engine.reach import tokenizer_of
from cai.errors import UserError
from cai.pairs import prompt_rows, write_jsonl
from cai.pipeline.training import checkpoint_dir, finished
from cai.store.calls import Recorded
from cai.trail import RunView

if TYPE_CHECKING:
    from cai.pipeline.conduct import Conductor, PhaseTurn


async def further(conductor: Conductor, turn: PhaseTurn, judge: Recorded) -> dict[str, Any]:
    """Return what the spec of such a training holds beside the usual. The judge is served from now on if it is needed.

    Nothing for a method that answers no prompts. Raises UserError where a reward model that the config names is not
    there.
    """
    config, folder = conductor.config, conductor.folder
    settings: TrainerSection = getattr(config.train, turn.phase.train)
    watch, weight = getattr(settings, "watch", None), 0.0
    if not watch and not isinstance(settings, RlSection):
        return {}
    if isinstance(settings, RlSection):
        models = tuple(_model(folder, name, turn) for name in settings.reward.model)
        weight = settings.reward.judge_weight
        settings = settings.model_copy(update={"reward": settings.reward.model_copy(update={"model": models})})
    held_out = checkpoint_dir(folder, turn.name).with_suffix(".held_out.jsonl")
    with RunView(folder) as run:
        n_held_out = write_jsonl(held_out, prompt_rows(run, "held_out")) if watch else 0
    spec = {
        "settings": settings.model_dump(mode="json"),
        "constitution": str(folder / "constitution.yaml"),
        "held_out": str(held_out) if n_held_out else None,
        "engine": config.engine.model_dump(mode="json"),
    }
    judges = any(p.check is None for p in conductor.constitution.principles)
    if judges and (weight or n_held_out):
        spec["judge"] = await _judge(conductor, judge)
    return spec


async def _judge(conductor: Conductor, judge: Recorded) -> dict[str, Any]:
    """Return how the training reaches the judge, which sleeps until it is asked where both have one GPU."""
    config, fleet = conductor.config, conductor.fleet
    sleeps = config.engine.kind != "transformers" and not judge.model.section.base_url
    fleet.sleeps = sleeps = sleeps and shares_gpu_with_training(config.train.device)
    section = await fleet.address(judge.model)
    fleet.sleeps = False
    for url in section.base_url if sleeps else ():
        await sleeping.sleep(url)
    return {
        "model": section.model_dump(mode="json"),
        "engine": config.engine.model_dump(mode="json"),
        "identity": judge.identity,
        "tokens": tokenizer_of(judge.model.section, config.engine),
        "templates": str(conductor.folder / "prompts"),
        "near": str(conductor.folder),
        "max_outside_mass": config.judge.max_outside_mass,
        "sleeps": sleeps,
    }


def _model(folder: Path, name: str, turn: PhaseTurn) -> str:
    """Return the folder of a reward model: an earlier phase's of the same round, or one that lies elsewhere."""
    in_round = name + turn.name.removeprefix(turn.phase.name)
    for phase in (in_round, name):
        out = checkpoint_dir(folder, phase)
        if done := finished(out):
            return str(out / done["kind"])
    if Path(name).is_dir() or "/" in name:
        return name
    raise UserError(
        f"train.{turn.phase.train}.reward.model: '{name}' is neither a folder nor an earlier phase with a checkpoint; "
        "train a reward model in a phase of that name, or name its folder"
    )
