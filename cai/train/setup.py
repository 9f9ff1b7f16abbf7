"""From a request to a training that samples (PPO, GRPO, RLOO): prompts, rewards and held-out looks, made ready.

with setup.opened("ppo", …) as ready:      # a TrainResult where the checkpoint is there already
    result = ready.finish(trainer, manifest)
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from cai import canon
from cai.config import RlSection, WatchSection
from cai.errors import UserError
from cai.model.fetch import resolve
from cai.model.folder import content_of
from cai.train import rewards
from cai.train.admit import (
    check_base,
    check_resumed,
    check_room,
    check_targets,
    rows_at_once,
    settle_sharding,
    sharding,
)
from cai.train.checkpoint import Folder
from cai.train.data import Example, Renderer, load_tokenizer, training_order
from cai.train.heldout import HeldOut, Rendered
from cai.train.job import Job, OnStep, TrainResult, pick_device, pick_dtype
from cai.train.rewards import Mix, Source
from cai.train.rollouts import PromptRow, load_prompts, render
from cai.train.tripwires import Trip, ending

_LONGEST = 128
"""Tokens of an answer at a look, where a method samples no others."""


class Trainer(Protocol):
    """What `finish` needs of a method."""

    trip: Trip | None
    n_failed: int
    step_done: int

    def run(self) -> None:
        """Do every step that is left."""

    def roll_back(self) -> int | None:
        """Take back the weights that the judge scored best; return their step."""

    def save_weights(self, part: Path) -> None:
        """Write what was trained into a folder: the main process does, with what all of them hold."""


@dataclass
class Ready:
    """Everything a method needs to start."""

    job: Job
    prompts: list[Rendered]
    renderer: Renderer
    mix: Mix
    held_out: HeldOut | None
    spec: Mapping[str, Any]
    dropped: dict[str, int]
    began: float = field(default_factory=time.monotonic)

    def finish(self, trainer: Trainer, manifest: dict[str, Any]) -> TrainResult:
        """Run a method to its end and publish its checkpoint.

        Where a wire was tripped the manifest says so (`tripped`), and which step's weights were kept.
        """
        job, folder = self.job, self.job.folder
        process = PartialState()
        trainer.run()
        watch: WatchSection | None = job.settings.watch  # type: ignore[attr-defined]
        tripped = ending(trainer.trip, watch, trainer.step_done, trainer.roll_back)
        part = folder.out / f".{job.kind}.part"
        if process.is_main_process:
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
        process.wait_for_everyone()
        trainer.save_weights(part)
        process.wait_for_everyone()
        said = {
            **manifest,
            **_ends(folder.curve),
            "n_rows": len(self.prompts),
            "dropped": self.dropped,
            "steps": trainer.step_done,
            "unscored": trainer.n_failed,
            "tripped": tripped,
            "sharding": sharding(),
            "device": job.device,
            "dtype": job.dtype,
            "wall_s": round(time.monotonic() - self.began, 1),
        }
        if process.is_main_process:
            said = folder.finish(job.kind, part, said)
        process.wait_for_everyone()
        return TrainResult(folder.out / job.kind, said, reused=False)


@contextmanager
def opened(
    method: str,
    rows_path: str | Path,
    base: str,
    out: str | Path,
    settings: RlSection,
    *,
    seed: int,
    device: str,
    dtype: str,
    trust_remote_code: bool,
    on_step: OnStep | None,
    stop: threading.Event | None,
    spec: Mapping[str, Any],
    sources: Sequence[tuple[Source, float]] | None,
) -> Iterator[Ready | TrainResult]:
    """Yield a training ready to start, or the checkpoint that is there already. The judge is let go at the end."""
    device = pick_device(device)
    settle_sharding(method, writes=True)
    process = PartialState(cpu=device == "cpu")
    if method != "ppo":  # whose own loop shares whatever there is
        rows_at_once(settings, process.num_processes)
    path, rows, seen = resolve(base), load_prompts(rows_path), held_out_rows(settings.watch, spec)
    check_base(path)
    check_targets(settings, path, trust_remote_code=trust_remote_code)
    folder = Folder(Path(out), {})
    with folder.owned() if process.is_main_process else nullcontext():
        if sources is None:
            sources = rewards.open_sources(settings.reward, spec, device, calls(folder.out))
        referees = find_referees(settings.watch, spec, sources, calls(folder.out))
        try:
            folder.fingerprint = {
                "method": method,
                "base": base,
                "base_id": content_of(path),
                "trust_remote_code": trust_remote_code,
                "settings": settings.model_dump(mode="json"),
                "rows_id": canon.id_of_files(Path(rows_path)),
                "rewards": {source.name: getattr(source, "id", None) for source, _ in sources},
                "referees": {source.name: getattr(source, "id", None) for source in referees},
                "seed": seed,
            }
            if seen:
                folder.fingerprint["held_out_id"] = canon.id_of_files(Path(spec["held_out"]))
            if done := folder.finished():
                yield TrainResult(folder.out / done["kind"], done, reused=True)
                return
            renderer = Renderer(load_tokenizer(path, trust_remote_code=trust_remote_code))
            prompts, dropped = render(rows, renderer, settings.max_length - settings.max_new_tokens)
            asked = [(row.id, len(ids)) for row, ids in prompts]
            check_room(asked, path, settings.max_new_tokens, trust_remote_code=trust_remote_code)
            mix = Mix(sources, settings.reward)
            held_out = find_held_out(settings, seen, renderer, mix, referees, seed)
            if held_out:
                asked = [(row.id, len(ids)) for row, ids in held_out.prompts]
                check_room(asked, path, held_out.max_new_tokens, trust_remote_code=trust_remote_code)
            resume, precision = open_state(folder, method, dtype, device)
            # Steps are counted in answers: a prompt with several takes so many places of the order.
            passes = settings.epochs * getattr(settings, "answers", 1)
            job = Job(
                folder=folder,
                base=path,
                settings=settings,
                examples=[Example(row.id, ids, []) for row, ids in prompts],
                order=training_order([len(ids) for _, ids in prompts], passes, 1, seed),
                seed=seed,
                device=device,
                dtype=precision,
                on_step=on_step,
                stop=stop or threading.Event(),
                resume=resume,
                trust_remote_code=trust_remote_code,
            )
            yield Ready(job, prompts, renderer, mix, held_out, spec, dropped)
        finally:
            close_all([*(source for source, _ in sources), *referees])


def open_state(folder: Folder, method: str, dtype: str, device: str) -> tuple[Path | None, str]:
    """Return the state to resume from, if any, and the precision to train in: the same in every process."""
    opened: list[Any] = [None, None]
    if PartialState().is_main_process:
        opened = list(folder.open_state(lambda: {"dtype": pick_dtype(dtype, device), "sharding": sharding()}))
    resume, chosen = broadcast_object_list(opened)
    if method != "ppo":  # which keeps whole weights, however they were sharded
        check_resumed(resume, chosen)
    return resume, chosen["dtype"]


def calls(out: Path) -> Path:
    """Return where lies, beside the curve, what this process asks the judge while training. A store has one writer."""
    out.mkdir(parents=True, exist_ok=True)
    process = PartialState()
    return out / ("judged.sqlite" if process.is_main_process else f"judged-{process.process_index}.sqlite")


def close_all(sources: Sequence[Source]) -> None:
    """Let go of the sources that hold something."""
    for source in {id(source): source for source in sources}.values():
        if hasattr(source, "close"):
            source.close()


def find_referees(
    watch: WatchSection | None, spec: Mapping[str, Any], sources: Sequence[tuple[Source, float]], keep: Path
) -> list[Source]:
    """Return who scores held-out answers whatever the reward: the judge and the checks, as far as there are any."""
    if watch is None or not spec.get("held_out"):
        return []
    known = {source.name: source for source, _ in sources}
    principles = rewards.principles_of(spec)
    found: list[Source] = []
    if any(p.check is None for p in principles) and spec.get("judge"):
        found.append(known.get("judge") or rewards.open_judge(spec, keep))
    if any(p.check is not None for p in principles):
        found.append(known.get("checks") or rewards.Checks(principles))
    return found


def held_out_rows(watch: WatchSection | None, spec: Mapping[str, Any]) -> list[PromptRow]:
    """Return the held-out prompts that a spec names; none where nothing is watched. UserError: a bad line."""
    if watch is None or not spec.get("held_out"):
        return []
    try:
        return load_prompts(spec["held_out"])
    except UserError as error:
        raise UserError(f"held_out, {error}") from error


def find_held_out(
    settings: Any, rows: Sequence[PromptRow], renderer: Renderer, mix: Mix | None, referees: list[Source], seed: int
) -> HeldOut | None:
    """Return the held-out prompts that a method looks at; None without any."""
    watch: WatchSection | None = settings.watch
    if watch is None or not rows:
        return None
    longest = watch.max_new_tokens or getattr(settings, "max_new_tokens", _LONGEST)
    try:
        prompts, _ = render(rows, renderer, settings.max_length - longest)
    except UserError as error:
        raise UserError(f"held_out, {error}") from error
    return HeldOut(prompts, watch, mix, referees, seed, longest)


def _ends(curve: Path) -> dict[str, Any]:
    """Return the first and the last step's loss, reward and divergence."""
    rows = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss" in row]
    named = {"loss": "loss", "reward": "reward", "kl": "kl"}
    return {
        f"{name}_{end}": rows[at].get(key)
        for name, key in named.items()
        for end, at in (("first", 0), ("last", -1))
        if rows
    }
