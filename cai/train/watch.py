"""Looks at held-out answers inside the training loop of `transformers`, and its end where a wire is tripped.

PPO, whose loop is our own, does the same by itself; what is looked at and what trips is shared.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from transformers.trainer_callback import ExportableState

from cai.config import WatchSection
from cai.errors import TrainError
from cai.train import telemetry
from cai.train.admit import sharding
from cai.train.batches import sft_batch
from cai.train.checkpoint import numbers_only
from cai.train.data import Example, Renderer
from cai.train.heldout import HeldOut, Rendered
from cai.train.job import Interrupted, Job
from cai.train.policy import at_targets, entropy_of, reference_logps
from cai.train.rollouts import InProcess, Rollout, sample, stop_tokens
from cai.train.sharding import keep, parted, shard, whole
from cai.train.trainer import NothingLeft, Progress, load_model, load_plain
from cai.train.tripwires import NotFinite, Trip, best, goes_back, kl_ceiling, tripped


class Watch(TrainerCallback, ExportableState):
    """Looks at held-out answers, and stops the loop where a wire is tripped."""

    def __init__(self, trainer: Any, settings: WatchSection | None, held_out: HeldOut | None, renderer: Renderer):
        """`trainer` has a `job`; one that samples anyway has its own `writer` and, where it has one, `ref_model`."""
        self.trainer, self.job, self.held_out, self.renderer = trainer, trainer.job, held_out, renderer
        self.settings = settings
        self.trip: Trip | None = None
        self.looks: list[dict[str, Any]] = []
        self._plain = trainer.accelerator.unwrap_model(trainer.model)
        self._stops = stop_tokens(self._plain, renderer)
        self._reference = getattr(trainer, "ref_model", None)
        self._kept = self.job.folder.state / "best.safetensors"
        if held_out is not None:
            if self._reference is None and not self.job.settings.lora:
                self._reference = self._own_reference()
            self._writer = getattr(trainer, "writer", None) or self._own_writer()

    def _own_reference(self) -> Any:
        """Return what the policy is measured against, for a method that holds none itself."""
        device = self.trainer.accelerator.device
        reference = load_model(self.job).requires_grad_(False).eval()
        in_bf16 = self.job.dtype == "bfloat16"
        if sharding() == "FSDP":
            shard(reference, set(reference._no_split_modules or ()), self.job.device, in_bf16=in_bf16)
        elif sharding() == "DEEPSPEED" and in_bf16:  # as its engine holds the policy
            reference.to(torch.bfloat16)
        return reference.to(device)

    def _own_writer(self) -> InProcess:
        """Return what answers for a method that samples nothing itself."""
        merged = load_plain(self.job)
        device = self.trainer.accelerator.device
        return InProcess(self._plain, self._stops, merged and merged.to(device).requires_grad_(False))

    def state(self) -> dict[str, Any]:
        """Return the looks and the trip: `transformers` keeps them in every state that it saves."""
        return {"args": {}, "attributes": {"looks": self.looks, "trip": self.trip.as_dict() if self.trip else None}}

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the untrained policy, or recall what was seen before the training was resumed."""
        if state.global_step:
            empty = {"attributes": {"looks": [], "trip": None}}  # of a state that was saved without this callback
            kept = state.stateful_callbacks.setdefault(type(self).__name__, empty)["attributes"]
            self.looks, self.trip = kept["looks"], Trip(**kept["trip"]) if kept["trip"] else None
            self._best()
        else:
            if state.is_world_process_zero:  # of an attempt that saved nothing
                self.job.folder.curve.unlink(missing_ok=True)
            self.look(0)
        control.should_training_stop = self.trip is not None

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look where it is time to. The figures go into the step's own line of the curve."""
        watch = self.settings
        if not logs or "loss" not in logs or watch is None:
            return
        # Before the look, which keeps no weights of a step that trips; a process knows the length of its own answers.
        trip = self.trip or kl_ceiling(logs.get("kl") or 0.0, state.global_step, watch)
        (self.trip,) = broadcast_object_list([trip])
        if self.held_out and (state.global_step % watch.every == 0 or state.global_step == state.max_steps):
            logs |= {f"held_out_{k}": v for k, v in self.look(state.global_step).items() if v is not None}
            control.should_save = True  # so that the best policy and the looks that name it are kept together
        if self.trip:
            control.should_training_stop = True

    def look(self, step: int) -> dict[str, Any]:
        """Return the figures of a look, and keep the weights where the judge has found none better."""
        if self.held_out is None or self.settings is None:
            return {}
        self._writer.update(step)
        look = self.held_out.look(step, self._sample, self._measure)
        self.looks.append(look)
        self.trip = self.trip or tripped(self.looks, self.settings)
        is_main = self.trainer.is_world_process_zero()
        if best(self.looks, self.trip) == step:
            keep(self._trained(), self._kept, is_main=is_main)
        told = {k: v for k, v in look.items() if k != "step"} | {"sqrt_kl": math.sqrt(max(0.0, look["kl"]))}
        if step == 0 and is_main:
            telemetry.keep(self.job.folder.curve, {"step": 0, **{f"held_out_{k}": v for k, v in told.items()}})
        return told

    def takes(self, error: NotFinite) -> bool:
        """Return whether the training ends with the best weights there were, and not in this error."""
        if not goes_back(self.looks, self.settings):
            return False
        self.trip = error.trip
        return True

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self._plain.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def roll_back(self) -> int | None:
        """Take back the weights that the judge scored best; return their step, or None where nobody scored.

        Raises TrainError where they are gone.
        """
        self.trainer.accelerator.wait_for_everyone()
        if (step := self._best()) is None:
            return None
        kept = load_file(self._kept)
        with whole(self._plain):  # and in parts afterwards: a step that was broken off has left its last part whole
            pass
        for name, parameter in self._trained().items():
            parameter.copy_(parted(kept[name], parameter))
        return step

    def _best(self) -> int | None:
        """Return the step whose weights are kept as the best, if any. Raises TrainError where they are gone."""
        step = best(self.looks, self.trip)
        if step is not None and not self._kept.exists():
            raise TrainError(
                f"{self._kept}: is not here, expected the weights of step {step}, which the held-out look scored best; "
                f"remove {self._kept.parent} to start anew"
            )
        return step

    def _sample(self, prompts: Sequence[Rendered], seeds: Sequence[int]) -> list[Rollout]:
        assert self.held_out is not None
        with whole(self._plain):
            return sample(self._writer, prompts, seeds, self.held_out.max_new_tokens, self.renderer, self._stops)

    @torch.no_grad()
    def _measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        plain, reference = self._plain, self._reference
        was_training = plain.training
        plain.eval()
        gaps, entropies = [], []
        with whole(plain, reference):
            for rollout in rollouts:
                example = Example(rollout.row.id, rollout.prompt_ids, [rollout.answer_ids])
                batch = {k: v.to(plain.device) for k, v in sft_batch([example], 0).items()}
                with self.trainer.in_precision():
                    at = at_targets(plain, batch)
                    before_M = reference_logps(plain, reference, batch)
                gaps.append(float((at.logps_M - before_M).sum()))
                entropies += entropy_of(at.logps_MV).tolist()
        plain.train(was_training)
        return {"kl": fmean(gaps), "entropy": fmean(entropies)}


def drive(job: Job, trainer: Any, watch: Watch | None) -> None:
    """Train to the last step, or until a wire is tripped. Raises Interrupted where a stop was asked for before."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    if watch:
        trainer.add_callback(watch)
    trainer.add_callback(Progress(job, lambda: trainer.n_tokens_seen))  # after the watch, which may find nothing left
    try:
        with numbers_only():
            trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    except NothingLeft:
        pass
    except NotFinite as error:
        if not (watch and watch.takes(error)):
            raise
    except pickle.UnpicklingError as error:
        raise TrainError(
            f"{job.resume}: holds more than numbers and was not loaded ({error}); remove {job.resume} and "
            "run the same command again"
        ) from error
    if trainer.state.global_step < job.steps and not (watch and watch.trip):
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {job.steps}; the same command goes on there")
