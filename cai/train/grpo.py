"""GRPO and RLOO: TRL's trainers with our answers, rewards, tripwires and folder.

Several answers to a prompt are each other's baseline, so there is no value function. TRL has the losses and the loop;
the answers are drawn as in PPO, by seeds that are hashes of (seed, step, row).
"""

from __future__ import annotations

import functools
import math
import pickle
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, ProgressCallback, TrainerCallback

from cai import canon
from cai.config import GroupSection
from cai.engine.local import Start
from cai.errors import TrainError
from cai.train import setup, telemetry
from cai.train.batches import sft_batch
from cai.train.data import Example
from cai.train.heldout import Rendered
from cai.train.job import Interrupted, OnStep, TrainResult
from cai.train.policy import at_targets, entropy_of, reference_logps
from cai.train.rewards import Source
from cai.train.rollouts import InProcess, Rollout, sample, stop_tokens
from cai.train.trainer import Hooks, Progress, arguments, load_model, load_plain, lora_config
from cai.train.tripwires import Trip, best, kl_ceiling, not_a_number, tripped

# Where vLLM is installed, TRL would import it here, which takes longer than all the rest; we sample without it.
with mock.patch("trl.import_utils.is_vllm_available", lambda *_, **__: False):
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer


class _Sampling(Hooks):
    """Mixed in before TRL's trainer: our answers and rewards in place of its own."""

    def __init__(self, ready: setup.Ready, arguments: Any) -> None:
        self.ready, self.job = ready, ready.job
        self.n_failed = 0
        model = load_model(self.job)
        self.stops = stop_tokens(model, ready.renderer)
        super().__init__(
            model=model,
            reward_funcs=self.worth,
            args=arguments,
            train_dataset=_prompts(ready),
            processing_class=ready.renderer.tokenizer,
            peft_config=lora_config(self.job.settings),
        )
        self.plain = self.accelerator.unwrap_model(self.model)
        merged = load_plain(self.job)
        self.writer = InProcess(self.plain, self.stops, merged and merged.to(self.accelerator.device))

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return super(Hooks, self)._get_train_sampler(dataset)  # TRL's, which repeats every prompt for its answers

    def _generate_single_turn(self, prompt_ids: list[list[int]], *args: Any, **kwargs: Any) -> Any:
        """Return the answers' ids, drawn here, each with a seed of its own."""
        step, me = self.state.global_step, self.accelerator.process_index
        self.writer.update(step)
        starts = [Start(ids, canon.seed_of(self.job.seed, "answer", step, me, i)) for i, ids in enumerate(prompt_ids)]
        written = self.writer.write(starts, self.max_completion_length)
        return (written, None) if isinstance(self, GRPOTrainer) else written

    def worth(self, prompts: Any, completions: Any, completion_ids: Any, row: list[int], **_: Any) -> list[float]:
        """Return what the answers are worth, as TRL asks for it."""
        decode = self.ready.renderer.tokenizer.decode
        rollouts = [
            Rollout(*self.ready.prompts[i], ids, decode(ids, skip_special_tokens=True), ids[-1] in self.stops)
            for i, ids in zip(row, completion_ids, strict=True)
        ]
        scored = self.ready.mix.score(rollouts)
        if all(total is None for total in scored.totals):
            raise TrainError(f"none of the {len(rollouts)} answers after step {self.state.global_step} could be scored")
        n_failed = scored.totals.count(None)
        self.n_failed += n_failed
        self.n_tokens_seen += sum(len(r.prompt_ids) + len(r.answer_ids) for r in rollouts)
        figures = {
            **telemetry.of_rewards(scored.by_source),
            "length": fmean(len(ids) for ids in completion_ids),
            "finished": fmean(rollout.finished for rollout in rollouts),
            **telemetry.of_texts([rollout.text for rollout in rollouts]),
            "unscored": float(n_failed),
        }
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        return filled(scored.totals, row)

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Hand on TRL's figures under the names that PPO's have. Its divergence is a mean over tokens."""
        figures = self._metrics["train"]
        if figures["kl"] and figures["length"]:
            figures["kl_per_token"] = figures["kl"]
            figures["kl"] = [fmean(figures["kl"]) * fmean(figures["length"])]
        figures["clip_fraction"] = figures.pop("clip_ratio/region_mean", [])
        super().log(logs, *args)


def _prompts(ready: setup.Ready) -> Any:
    """Return the prompts in the order of training, with their row numbers, as TRL wants them."""
    from datasets import Dataset

    rows = ready.job.order
    return Dataset.from_dict({"prompt": [ready.prompts[i][0].messages for i in rows], "row": rows})


def filled(totals: Sequence[float | None], groups: Sequence[int]) -> list[float]:
    """Return the rewards, every missing one replaced by the mean of its prompt's others; of all, where there is none.

    TRL would count a missing reward as zero. At the mean the answer has no advantage: nothing is learnt from it.
    """
    by_group: dict[int, list[float]] = {}
    for total, group in zip(totals, groups, strict=True):
        if total is not None:
            by_group.setdefault(group, []).append(total)
    every = [total for total in totals if total is not None]
    return [
        fmean(by_group.get(group, every)) if total is None else total
        for total, group in zip(totals, groups, strict=True)
    ]


class CaiGRPOTrainer(_Sampling, GRPOTrainer):
    """TRL's GRPOTrainer (Shao et al. 2024, 2402.03300)."""


class CaiRLOOTrainer(_Sampling, RLOOTrainer):
    """TRL's RLOOTrainer (Ahmadian et al. 2024, 2402.14740)."""


class _Watch(TrainerCallback):
    """Looks at held-out answers, and stops TRL's loop where a wire is tripped."""

    def __init__(self, trainer: _Sampling) -> None:
        self.trainer, self.job = trainer, trainer.job
        self.held_out = trainer.ready.held_out
        self.trip: Trip | None = None
        self.looks: list[dict[str, Any]] = []
        self._kept = self.job.folder.state / "best.safetensors"

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the untrained policy, or recall what was seen before the training was resumed."""
        curve = self.job.folder.curve
        rows = [canon.loads(line) for line in curve.read_bytes().splitlines()] if curve.exists() else []
        seen = [row for row in rows if row["step"] <= state.global_step and "held_out_kl" in row]
        self.looks = [{k.removeprefix("held_out_"): v for k, v in row.items()} for row in seen]
        if not self.looks:
            self.look(0)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        """Look where it is time to. The figures go into the step's own line of the curve."""
        watch = self.job.settings.watch
        if not logs or "loss" not in logs or watch is None:
            return
        if self.held_out and (state.global_step % watch.every == 0 or state.global_step == state.max_steps):
            logs |= {f"held_out_{k}": v for k, v in self.look(state.global_step).items() if v is not None}
        for name in ("loss", "grad_norm"):
            if not math.isfinite(logs.get(name, 0.0)):
                self.trip = self.trip or not_a_number(name, state.global_step)
        self.trip = self.trip or kl_ceiling(logs.get("kl", 0.0), state.global_step, watch)
        if self.trip:
            control.should_training_stop = True

    def look(self, step: int) -> dict[str, Any]:
        """Return the figures of a look, and keep the weights where the judge has found none better."""
        if self.held_out is None or self.job.settings.watch is None:
            return {}
        self.trainer.writer.update(step)
        look = self.held_out.look(step, self._sample, self._measure)
        self.looks.append(look)
        self.trip = self.trip or tripped(self.looks, self.job.settings.watch)
        if best(self.looks) == step:
            save_file({k: v.detach().contiguous().cpu() for k, v in self._trained().items()}, self._kept)
        told = {k: v for k, v in look.items() if k != "step"} | {"sqrt_kl": math.sqrt(max(0.0, look["kl"]))}
        if step == 0:
            telemetry.keep(self.job.folder.curve, {"step": 0, **{f"held_out_{k}": v for k, v in told.items()}})
        return told

    def _trained(self) -> dict[str, torch.Tensor]:
        return {name: p for name, p in self.trainer.plain.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def roll_back(self) -> int | None:
        """As setup.Trainer."""
        if (step := best(self.looks)) is None or not self._kept.exists():
            return None
        kept = load_file(self._kept)
        for name, parameter in self._trained().items():
            parameter.copy_(kept[name])
        return step

    def _sample(self, prompts: Sequence[Rendered], seeds: Sequence[int]) -> list[Rollout]:
        trainer = self.trainer
        return sample(
            trainer.writer, prompts, seeds, trainer.max_completion_length, trainer.ready.renderer, trainer.stops
        )

    @torch.no_grad()
    def _measure(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        plain, reference = self.trainer.plain, self.trainer.ref_model
        knows_reference = reference is not None or self.job.settings.lora is not None
        was_training = plain.training
        plain.eval()
        gaps, entropies = [], []
        for rollout in rollouts:
            example = Example(rollout.row.id, rollout.prompt_ids, [rollout.answer_ids])
            batch = {k: v.to(plain.device) for k, v in sft_batch([example], 0).items()}
            with self.trainer.accelerator.autocast():
                at = at_targets(plain, batch)
                before_M = reference_logps(plain, reference, batch) if knows_reference else at.logps_M
            gaps.append(float((at.logps_M - before_M).sum()))
            entropies += entropy_of(at.logps_MV).tolist()
        plain.train(was_training)
        return {"kl": fmean(gaps), "entropy": fmean(entropies)}


class Group:
    """One training with TRL's loop, as setup.Trainer."""

    def __init__(self, method: str, ready: setup.Ready) -> None:
        assert isinstance(ready.job.settings, GroupSection)
        self.job, self.ready, settings = ready.job, ready, ready.job.settings
        torch.manual_seed(self.job.seed)
        kind, config = {"grpo": (CaiGRPOTrainer, GRPOConfig), "rloo": (CaiRLOOTrainer, RLOOConfig)}[method]
        further = {
            "num_generations": settings.answers,
            "max_completion_length": settings.max_new_tokens,
            "beta": settings.beta,
            "temperature": 1.0,
            "shuffle_dataset": False,
        }
        taken = {k: v for k, v in arguments(self.job).items() if k != "max_length"}
        self.trainer = kind(ready, config(**taken, **further))
        self.watch = _Watch(self.trainer)
        for callback in (PrinterCallback, ProgressCallback):
            self.trainer.remove_callback(callback)
        self.trainer.add_callback(self.watch)
        self.trainer.add_callback(Progress(self.job, lambda: self.trainer.n_tokens_seen))

    @property
    def trip(self) -> Trip | None:
        """As setup.Trainer."""
        return self.watch.trip

    @property
    def n_failed(self) -> int:
        """As setup.Trainer."""
        return self.trainer.n_failed

    @property
    def step_done(self) -> int:
        """As setup.Trainer."""
        return self.trainer.state.global_step

    def run(self) -> None:
        """As setup.Trainer."""
        resume = self.job.resume
        try:
            self.trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        except pickle.UnpicklingError as error:
            raise TrainError(
                f"{resume}: holds more than numbers and was not loaded ({error}); remove it and run the "
                "same command again"
            ) from error
        if self.trip is None and self.step_done < self.job.steps:
            raise Interrupted(f"stopped at step {self.step_done} of {self.job.steps}; the same command goes on there")

    def roll_back(self) -> int | None:
        """As setup.Trainer."""
        return self.watch.roll_back()

    def save_weights(self, part: Path) -> None:
        """As setup.Trainer."""
        self.trainer.save_model(str(part))


def train_group(
    method: str,
    rows_path: str | Path,
    base: str,
    out: str | Path,
    settings: GroupSection,
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    on_step: OnStep | None = None,
    manifest: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
    spec: Mapping[str, Any] | None = None,
    sources: Sequence[tuple[Source, float]] | None = None,
) -> TrainResult:
    """As cai.train.ppo.train, with `method` grpo or rloo."""
    with setup.opened(
        method,
        rows_path,
        base,
        out,
        settings,
        seed=seed,
        device=device,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        on_step=on_step,
        stop=stop,
        spec=spec or {},
        sources=sources,
    ) as ready:
        if isinstance(ready, TrainResult):
            return ready
        return ready.finish(Group(method, ready), manifest or {})


train = functools.partial(train_group, "grpo")
