"""Direct preference optimisation that keeps the judge's doubt: TRL's DPOTrainer with soft labels and our batches."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from cai.config import DpoSection
from cai.train import losses, session
from cai.train.batches import IGNORE, Batch, can_share, completion_logps, shared_pairs, stacked_pairs, sum_by_arm
from cai.train.data import Example
from cai.train.job import Interrupted, Job
from cai.train.trainer import (
    Hooks,
    arguments,
    asked_to_stop,
    dataset,
    load_model,
    lora_config,
    on_one_device,
    quantization,
)

REFERENCE_FREE = ("orpo", "simpo")
ARMS = ("chosen", "rejected", "stranger")
"""The answers to a prompt. KTO's third one answers another prompt; how far the policy has moved on it measures z."""


class CaiDPOTrainer(Hooks, DPOTrainer):
    """TRL's DPOTrainer on rows of cai.train.data, for every loss of the family.

    The loss takes `p_chosen` of every pair, the prompt of a pair is computed once where the model allows it, and the
    reference log-probabilities are computed once and kept with the resume state.
    """

    def __init__(self, job: Job, tokenizer: Any) -> None:
        assert isinstance(job.settings, DpoSection)
        self.job, self.dpo = job, job.settings
        self.arms = ARMS if job.settings.loss == "kto" else ARMS[:2]
        self._weight_mean = sum(e.weight for e in job.examples) / len(job.examples)
        model = load_model(job)
        self._layout = shared_pairs if can_share(model, job.examples, tokenizer.pad_token_id) else stacked_pairs
        super().__init__(
            model=model,
            args=DPOConfig(**arguments(job, **on_one_device()), beta=job.settings.beta, precompute_ref_log_probs=True),
            data_collator=self._collate,
            train_dataset=dataset(job),
            processing_class=tokenizer,
            peft_config=lora_config(job.settings),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        numbers = [row["row"] for row in rows]
        examples = [self.job.examples[i] for i in numbers]
        if self.dpo.loss == "kto":
            examples = [self._with_stranger(i) for i in numbers]
        batch = {
            **self._layout(examples, self.processing_class.pad_token_id),
            "row": torch.tensor(numbers),
            "p_chosen": torch.tensor([1.0 if self.dpo.labels == "hard" else e.p_chosen for e in examples]),
            "weight": torch.tensor([e.weight / self._weight_mean for e in examples]),
        }
        for key in self._reference_keys():
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows])
        return batch

    def _with_stranger(self, number: int) -> Example:
        """Return a row with a third completion: what was chosen in the next row, cut to the room there is."""
        example = self.job.examples[number]
        stranger = self.job.examples[(number + 1) % len(self.job.examples)].completions[0]
        room = self.dpo.max_length - len(example.prompt_ids)
        return replace(example, completions=[*example.completions, stranger[:room]])

    def _reference_keys(self) -> list[str]:
        return [] if self.dpo.loss in REFERENCE_FREE else [f"ref_{arm}_logps" for arm in self.arms]

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False) -> torch.Tensor:
        logps = self._logps(model, inputs)
        n_tokens = sum_by_arm((inputs["targets"] != IGNORE).float(), inputs, len(self.arms))
        ratios = [logp_B - inputs[key] for logp_B, key in zip(logps, self._reference_keys(), strict=False)]
        means = [logp_B / n_B for logp_B, n_B in zip(logps, n_tokens, strict=True)]
        nll = -logps[0].sum() / n_tokens[0].sum()
        loss = (inputs["weight"] * self._loss_B(ratios, means, n_tokens, inputs["p_chosen"])).mean()
        sft_weight = self.dpo.sft_weight + (self.dpo.loss == "orpo")
        if sft_weight:
            loss = loss + sft_weight * nll
        self.n_tokens_seen += int(inputs["position_ids" if "position_ids" in inputs else "attention_mask"].ne(0).sum())
        self._note(ratios or means, nll, n_tokens[0])
        return self.checked(loss, inputs)

    def _loss_B(
        self,
        ratios: list[torch.Tensor],
        means: list[torch.Tensor],
        n_tokens: tuple[torch.Tensor, ...],
        p_chosen_B: torch.Tensor,
    ) -> torch.Tensor:
        """Return the configured loss per pair (B), from log-ratios and from mean log-probabilities by arm."""
        dpo = self.dpo
        label_B = (losses.unbiased if dpo.loss == "robust" else losses.smoothed)(p_chosen_B, dpo.label_noise)
        if dpo.loss == "orpo":
            return dpo.beta * losses.soft_orpo(means[0], means[1], label_B)
        if dpo.loss == "simpo":
            return losses.soft_simpo(means[0], means[1], label_B, dpo.beta, dpo.simpo_gamma)
        if dpo.loss == "ipo":
            return losses.soft_ipo(ratios[0] / n_tokens[0], ratios[1] / n_tokens[1], label_B, dpo.beta)
        if dpo.loss == "kto":
            z = self.accelerator.gather(ratios[2].detach().mean()[None]).mean().clamp(min=0)
            further = z, dpo.beta, dpo.desirable_weight, dpo.undesirable_weight
            loss_B = losses.soft_kto(ratios[0], label_B, *further)
            return (loss_B + losses.soft_kto(ratios[1], 1 - label_B, *further)) / 2
        return losses.soft_dpo(ratios[0], ratios[1], label_B, dpo.beta)

    def _logps(self, model: Any, batch: Batch) -> tuple[torch.Tensor, ...]:
        """Return the log-probabilities of the answers by arm (B each)."""
        logps_BT = completion_logps(model, batch, fused=self.accelerator.device.type == "cuda")
        return sum_by_arm(logps_BT, batch, len(self.arms))

    def _note(self, scores: list[torch.Tensor], nll: torch.Tensor, n_chosen_B: torch.Tensor) -> None:
        """Keep what a reader of the curve wants to see beside the loss."""
        rewards = [self.dpo.beta * score_B.detach() for score_B in scores]
        margin_B = rewards[0] - rewards[1]
        figures = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": margin_B,
            "rewards/accuracies": (margin_B > 0).float(),
            "chosen_nll_per_token": nll.detach()[None],
        }
        if self._reference_keys():
            figures["chosen_drift_per_token"] = scores[0].detach().sum()[None] / n_chosen_B.sum()
        for name, figure_B in figures.items():
            self._metrics["train"][name].append(self.accelerator.gather(figure_B).mean().item())

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return the dataset with the reference's log-probabilities, computed once per row and training."""
        if not self._reference_keys():
            return dataset
        kept = self.job.folder.state / "reference.safetensors"
        if broadcast_object_list([not kept.exists()])[0]:
            found = self._reference(sorted(set(self.job.order)), batch_size)
            if self.is_world_process_zero():
                part = kept.with_suffix(".part")
                save_file(found, part)
                part.rename(kept)
            self.accelerator.wait_for_everyone()
        reference = load_file(kept)
        for column in self._reference_keys():
            dataset = dataset.add_column(column, reference[column][dataset["row"]].tolist())
        return dataset

    def _reference(self, rows: list[int], batch_size: int) -> dict[str, torch.Tensor]:
        """Return the reference's log-probabilities by row number; zero for rows that are not asked for."""
        rows = sorted(rows, key=lambda i: -self.job.examples[i].n_tokens)
        loader = DataLoader([{"row": i} for i in rows], batch_size=batch_size, collate_fn=self._collate)
        found = {key: torch.zeros(len(self.job.examples)) for key in self._reference_keys()}
        n_done = 0
        if self.ref_model is None and quantization(self.job) is None:
            self.model.to(self.accelerator.device)  # which FSDP and DeepSpeed would do later
        for batch in self.accelerator.prepare(loader):
            if asked_to_stop(self.job):
                raise Interrupted("stopped before the first step; the same command starts again")
            sums = (batch["row"], *self.compute_ref_log_probs(self.ref_model or self.model, batch))
            numbers, *by_arm = (x.cpu() for x in self.accelerator.gather_for_metrics(sums))
            for key, logps_B in zip(found, by_arm, strict=True):
                found[key][numbers] = logps_B
            n_done += len(numbers)
            if self.job.on_step and self.is_world_process_zero():
                self.job.on_step({"step": 0, "steps": self.job.steps, "loss": None, "reference_rows": n_done})
        return found

    def compute_ref_log_probs(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, ...]:
        """Return the reference's log-probabilities of the answers by arm (B each)."""
        policy = self.accelerator.unwrap_model(self.model)
        as_reference = policy.disable_adapter() if self.ref_model is None and is_peft_model(policy) else nullcontext()
        with torch.no_grad(), as_reference, self.in_precision():
            return self._logps(model, inputs)


train = functools.partial(session.train, "dpo", CaiDPOTrainer)
