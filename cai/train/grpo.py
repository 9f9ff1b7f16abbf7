"""GRPO and RLOO: TRL's trainers with our answers, rewards, tripwires and folder.

Several answers to a prompt are each other's baseline, so there is no value function. TRL has the losses and the loop;
the answers are drawn as in PPO, by seeds that are hashes of (seed, step, row).
"""

from __future__ import annotations

import functools
import itertools
import logging
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any
from unittest import mock

import torch
from accelerate.utils import gather_object

from cai import canon
from cai.config import GroupSection
from cai.engine.local import Start
from cai.errors import TrainError
from cai.train import setup, telemetry
from cai.train.data import Example
from cai.train.job import OnStep, TrainResult
from cai.train.rewards import Source
from cai.train.rollouts import InProcess, Rollout, stop_tokens
from cai.train.sharding import whole
from cai.train.trainer import (
    Hooks,
    arguments,
    load_model,
    load_plain,
    lora_config,
    not_finite,
    on_one_device,
)
from cai.train.tripwires import NotFinite, Trip
from cai.train.watch import Watch, drive

# Where vLLM is installed, TRL would import it here, which takes longer than all the rest; we sample without it.
with mock.patch("trl.import_utils.is_vllm_available", lambda *_, **__: False):
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer
for _method in ("grpo", "rloo"):  # it would print every answer that could not be scored; here they are counted
    logging.getLogger(f"trl.trainer.{_method}_trainer").addFilter(lambda said: "returned None" not in said.getMessage())


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
        with whole(self.plain):
            written = self.writer.write(starts, self.max_completion_length)
        return (written, None) if isinstance(self, GRPOTrainer) else written

    def worth(
        self, prompts: Any, completions: Any, completion_ids: Any, row: list[int], **_: Any
    ) -> list[float | None]:
        """Return what the answers are worth, as TRL asks for it: it leaves those that are None out of their groups.

        These are the answers of this process; whether the step goes on is for all of them to say together.
        """
        decode = self.ready.renderer.tokenizer.decode
        rollouts = [
            Rollout(*self.ready.prompts[i], ids, decode(ids, skip_special_tokens=True), ids[-1] in self.stops)
            for i, ids in zip(row, completion_ids, strict=True)
        ]
        scored = self.ready.mix.score(rollouts)
        valid = [total for total in scored.totals if total is not None]
        n_all, n_valid = map(sum, zip(*gather_object([(len(rollouts), len(valid))]), strict=True))
        if not n_valid:
            raise TrainError(f"none of the {n_all} answers after step {self.state.global_step} could be scored")
        if broken := not_finite(torch.tensor(valid), sorted({rollout.row.id for rollout in rollouts})):
            # TRL would take it for a missing reward.
            ids = ", ".join(sorted(set(broken)))
            raise NotFinite("a reward", self.state.global_step + 1, f"the prompts of this batch: {ids}")
        self.n_failed += n_all - n_valid
        self._rows = row
        self.n_tokens_seen += sum(len(r.prompt_ids) + len(r.answer_ids) for r in rollouts)
        figures = {
            **telemetry.of_rewards(scored.by_source),
            "length": fmean(len(ids) for ids in completion_ids),
            "finished": fmean(rollout.finished for rollout in rollouts),
            **telemetry.of_texts([rollout.text for rollout in rollouts]),
            "unscored": float(n_all - n_valid),
        }
        for name, value in figures.items():
            self._metrics["train"][name].append(value)
        return scored.totals

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return TRL's loss; NotFinite before anything is learnt from one that is no number."""
        return self.checked(super().compute_loss(model, inputs, return_outputs, num_items_in_batch), inputs)

    def examples_of(self, inputs: Any) -> list[Example]:
        """As Hooks; TRL's batches do not say which prompts they answer, so these are all of the step."""
        return [self.job.examples[i] for i in sorted(set(self._rows))]

    def log(self, logs: dict[str, float], *args: Any) -> None:
        """Hand on TRL's figures under the names that PPO's have. Its divergence is a mean over tokens."""
        figures = self._metrics["train"]
        if figures.get("kl") and figures.get("length"):  # without a beta TRL measures none
            figures["kl_per_token"] = figures["kl"]
            figures["kl"] = [fmean(figures["kl"]) * fmean(figures["length"])]
        figures["clip_fraction"] = figures.pop("clip_ratio/region_mean", [])
        super().log(logs, *args)


def _prompts(ready: setup.Ready) -> Any:
    """Return the prompts of all steps, with their row numbers, as TRL wants them.

    TRL leaves out what does not fill a step, so where the passes end before the last step does they begin again.
    """
    from datasets import Dataset

    settings = ready.job.settings
    assert isinstance(settings, GroupSection)
    n_prompts = ready.job.steps * settings.batch_size // settings.answers
    rows = list(itertools.islice(itertools.cycle(ready.job.order), n_prompts))
    return Dataset.from_dict({"prompt": [ready.prompts[i][0].messages for i in rows], "row": rows})


class CaiGRPOTrainer(_Sampling, GRPOTrainer):
    """TRL's GRPOTrainer (Shao et al. 2024, 2402.03300)."""


class CaiRLOOTrainer(_Sampling, RLOOTrainer):
    """TRL's RLOOTrainer (Ahmadian et al. 2024, 2402.14740)."""


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
            **on_one_device(),
        }
        taken = {k: v for k, v in arguments(self.job).items() if k != "max_length"}
        self.trainer = kind(ready, config(**taken, **further))
        self.watch = Watch(self.trainer, settings.watch, ready.held_out, ready.renderer)

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
        if resume:  # the answers that could not be scored before are told by the curve
            rows = map(canon.loads, self.job.folder.curve.read_bytes().splitlines())
            self.trainer.n_failed = int(sum(row.get("unscored", 0) for row in rows))
        drive(self.job, self.trainer, self.watch)

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
