"""Direct preference optimisation that keeps the judge's doubt: TRL's DPOTrainer with soft labels and our batches."""

from __future__ import annotations

import functools
from contextlib import nullcontext
from typing import Any

import torch
from accelerate.utils import broadcast_object_list, is_peft_model
from safetensors.torch import load_file, save_file
from torch.utils.data import DataLoader
from trl import DPOConfig, DPOTrainer

from cai.config import DpoSection
from cai.train import losses, session
from cai.train.batches import IGNORE, Batch, can_share, completion_logps, shared_pairs, stacked_pairs, sum_by_arm
from cai.train.job import Interrupted, Job
from cai.train.trainer import Hooks, arguments, dataset, load_model, lora_config


class CaiDPOTrainer(Hooks, DPOTrainer):
    """TRL's DPOTrainer on rows of cai.train.data.

    The loss takes `p_chosen` of every pair, the prompt of a pair is computed once where the model allows it, and the
    reference log-probabilities are computed once and kept with the resume state.
    """

    def __init__(self, job: Job, tokenizer: Any) -> None:
        assert isinstance(job.settings, DpoSection)
        self.job, self.dpo = job, job.settings
        model = load_model(job)
        self._layout = shared_pairs if can_share(model, job.examples, tokenizer.pad_token_id) else stacked_pairs
        super().__init__(
            model=model,
            args=DPOConfig(**arguments(job), beta=job.settings.beta, precompute_ref_log_probs=True),
            data_collator=self._collate,
            train_dataset=dataset(job),
            processing_class=tokenizer,
            peft_config=lora_config(job.settings),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        numbers = [row["row"] for row in rows]
        examples = [self.job.examples[i] for i in numbers]
        batch = {
            **self._layout(examples, self.processing_class.pad_token_id),
            "row": torch.tensor(numbers),
            "p_chosen": torch.tensor([1.0 if self.dpo.labels == "hard" else e.p_chosen for e in examples]),
        }
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows])
        return batch

    def _compute_loss(self, model: Any, inputs: Batch, return_outputs: bool = False) -> torch.Tensor:
        chosen_B, rejected_B = self._logps(model, inputs)
        n_chosen_B, n_rejected_B = sum_by_arm((inputs["targets"] != IGNORE).float(), inputs)
        ratios = chosen_B - inputs["ref_chosen_logps"], rejected_B - inputs["ref_rejected_logps"]
        if self.dpo.loss == "ipo":
            means = ratios[0] / n_chosen_B, ratios[1] / n_rejected_B
            loss = losses.soft_ipo(*means, inputs["p_chosen"], self.dpo.beta).mean()
        else:
            loss = losses.soft_dpo(*ratios, inputs["p_chosen"], self.dpo.beta).mean()
        nll = -chosen_B.sum() / n_chosen_B.sum()
        if self.dpo.sft_weight:
            loss = loss + self.dpo.sft_weight * nll
        self.n_tokens_seen += int(inputs["position_ids" if "position_ids" in inputs else "attention_mask"].ne(0).sum())
        self._note(ratios, nll, n_chosen_B)
        return self.checked(loss, inputs)

    def _logps(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the log-probabilities of the chosen and of the rejected answers (B each)."""
        return sum_by_arm(completion_logps(model, batch, fused=self.accelerator.device.type == "cuda"), batch)

    def _note(self, ratios: tuple[torch.Tensor, torch.Tensor], nll: torch.Tensor, n_chosen_B: torch.Tensor) -> None:
        """Keep what a reader of the curve wants to see beside the loss."""
        rewards = [self.dpo.beta * ratio_B.detach() for ratio_B in ratios]
        margin_B = rewards[0] - rewards[1]
        figures = {
            "rewards/chosen": rewards[0],
            "rewards/rejected": rewards[1],
            "rewards/margins": margin_B,
            "rewards/accuracies": (margin_B > 0).float(),
            "chosen_drift_per_token": ratios[0].detach().sum()[None] / n_chosen_B.sum(),
            "chosen_nll_per_token": nll.detach()[None],
        }
        for name, figure_B in figures.items():
            self._metrics["train"][name].append(self.accelerator.gather(figure_B).mean().item())

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return the dataset with the reference's log-probabilities, computed once per row and training."""
        kept = self.job.folder.state / "reference.safetensors"
        if broadcast_object_list([not kept.exists()])[0]:
            found = self._reference(sorted(set(self.job.order)), batch_size)
            if self.is_world_process_zero():
                part = kept.with_suffix(".part")
                save_file(found, part)
                part.rename(kept)
            self.accelerator.wait_for_everyone()
        reference = load_file(kept)
        for column in ("ref_chosen_logps", "ref_rejected_logps"):
            dataset = dataset.add_column(column, reference[column][dataset["row"]].tolist())
        return dataset

    def _reference(self, rows: list[int], batch_size: int) -> dict[str, torch.Tensor]:
        """Return the reference's log-probabilities by row number; zero for rows that are not asked for."""
        rows = sorted(rows, key=lambda i: -self.job.examples[i].n_tokens)
        loader = DataLoader([{"row": i} for i in rows], batch_size=batch_size, collate_fn=self._collate)
        found = {f"ref_{arm}_logps": torch.zeros(len(self.job.examples)) for arm in ("chosen", "rejected")}
        n_done = 0
        for batch in self.accelerator.prepare(loader):
            if self.job.stop.is_set():
                raise Interrupted("stopped before the first step; the same command starts again")
            sums = (batch["row"], *self.compute_ref_log_probs(self.ref_model or self.model, batch))
            numbers, chosen_B, rejected_B = (x.cpu() for x in self.accelerator.gather_for_metrics(sums))
            found["ref_chosen_logps"][numbers], found["ref_rejected_logps"][numbers] = chosen_B, rejected_B
            n_done += len(numbers)
            if self.job.on_step and self.is_world_process_zero():
                self.job.on_step({"step": 0, "steps": self.job.steps, "loss": None, "reference_rows": n_done})
        return found

    def compute_ref_log_probs(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's log-probabilities of the chosen and of the rejected answers (B each)."""
        policy = self.accelerator.unwrap_model(self.model)
        as_reference = policy.disable_adapter() if self.ref_model is None and is_peft_model(policy) else nullcontext()
        with torch.no_grad(), as_reference, self.accelerator.autocast():
            return self._logps(model, inputs)


train = functools.partial(session.train, "dpo", CaiDPOTrainer)
