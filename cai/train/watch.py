"""Looks at held-out answers inside the training loop of `transformers`, and its end where a wire is tripped.

PPO, whose loop is our own, does the same by itself; what is looked at and what trips is shared.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

import torch
from accelerate.utils import broadcast_object_list
from safetensors.torch import load_file
from transformers import TrainerCallback

from cai import canon
from cai.config import WatchSection
from cai.train import telemetry
from cai.train.admit import sharding
from cai.train.batches import sft_batch
from cai.train.data import Example, Renderer
from cai.train.heldout import HeldOut, Rendered
from cai.train.policy import at_targets, entropy_of, reference_logps
from cai.train.rollouts import InProcess, Rollout, sample, stop_tokens
from cai.train.sharding import keep, parted, shard, whole
from cai.train.trainer import load_model, load_plain
from cai.train.tripwires import NotFinite, Trip, best, goes_back, kl_ceiling, tripped


class Watch(TrainerCallback):
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
            self._writer = getattr(trainer, "writer", None) or self._own_writer()

    def _own_writer(self) -> InProcess:
        """Return what answers for a method that samples nothing itself."""
        device = self.trainer.accelerator.device
        if self._reference is None and not self.job.settings.lora:
            self._reference = load_model(self.job).requires_grad_(False).eval()
            in_bf16 = self.job.dtype == "bfloat16"
            if sharding() == "FSDP":
                shard(self._reference, set(self._reference._no_split_modules or ()), self.job.device, in_bf16=in_bf16)
            elif sharding() == "DEEPSPEED" and in_bf16:  # as its engine holds the policy
                self._reference.to(torch.bfloat16)
            self._reference.to(device)
        merged = load_plain(self.job)
        return InProcess(self._plain, self._stops, merged and merged.to(device).requires_grad_(False))

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the untrained policy, or recall what was seen before the training was resumed."""
        curve = self.job.folder.curve
        rows = [canon.loads(line) for line in curve.read_bytes().splitlines()] if curve.exists() else []
        seen = [row for row in rows if row["step"] <= state.global_step and "held_out_kl" in row]
        self.looks = [{"step": row["step"], **_held_out_in(row)} for row in seen]
        if not self.looks:
            self.look(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look where it is time to. The figures go into the step's own line of the curve."""
        watch = self.settings
        if not logs or "loss" not in logs or watch is None:
            return
        if self.held_out and (state.global_step % watch.every == 0 or state.global_step == state.max_steps):
            logs |= {f"held_out_{k}": v for k, v in self.look(state.global_step).items() if v is not None}
            control.should_save = True  # so that the best policy and the looks that name it are kept together
        self.trip = self.trip or kl_ceiling(logs.get("kl", 0.0), state.global_step, watch)
        (self.trip,) = broadcast_object_list([self.trip])  # a process knows the length of its own answers only
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
        """Take back the weights that the judge scored best; return their step, or None where nobody scored."""
        self.trainer.accelerator.wait_for_everyone()
        if (step := best(self.looks, self.trip)) is None or not self._kept.exists():
            return None
        kept = load_file(self._kept)
        with whole(self._plain):  # and in parts afterwards: a step that was broken off has left its last part whole
            pass
        for name, parameter in self._trained().items():
            parameter.copy_(parted(kept[name], parameter))
        return step

    def _sample(self, prompts: Sequence[Rendered], seeds: Sequence[int]) -> list[Rollout]:
        assert self.held_out is not None
        with whole(self._plain):
            return sample(self._writer, prompts, seeds, self.held_out.max_new_tokens, self.renderer, self._stops)

    @torch.no_grad()
    def _measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        plain, reference = self._plain, self._reference
        knows_reference = reference is not None or self.job.settings.lora is not None
        was_training = plain.training
        plain.eval()
        gaps, entropies = [], []
        with whole(plain, reference):
            for rollout in rollouts:
                example = Example(rollout.row.id, rollout.prompt_ids, [rollout.answer_ids])
                batch = {k: v.to(plain.device) for k, v in sft_batch([example], 0).items()}
                with self.trainer.in_precision():
                    at = at_targets(plain, batch)
                    before_M = reference_logps(plain, reference, batch) if knows_reference else at.logps_M
                gaps.append(float((at.logps_M - before_M).sum()))
                entropies += entropy_of(at.logps_MV).tolist()
        plain.train(was_training)
        return {"kl": fmean(gaps), "entropy": fmean(entropies)}


def _held_out_in(row: dict[str, Any]) -> dict[str, Any]:
    """Return the figures of a look from a line of the curve, which has the step's own under like names."""
    return {name.removeprefix("held_out_"): value for name, value in row.items() if name.startswith("held_out_")}
