"""Direct preference optimisation that keeps the judge's doubt: TRL's DPOTrainer with soft labels and our batches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from trl import DPOConfig, DPOTrainer

from cai.config import DpoSection
from cai.train import losses, session
from cai.train.batches import Batch, can_share, completion_logps, shared_pairs, stacked_pairs, sum_by_arm
from cai.train.batches import IGNORE
from cai.train.job import Interrupted, Job
from cai.train.trainer import Hooks, arguments, dataset, load_model, lora_config


class CaiDPOTrainer(Hooks, DPOTrainer):
    """TRL's DPOTrainer on rows of cai.train.data.

    The loss takes `p_chosen` of every pair, the prompt of a pair is computed once where the model allows it, and the
    reference log-probabilities are computed once and kept with the resume state.
    """

    def __init__(self, job: Job, tokenizer: Any) -> None:
        assert isinstance(job.settings, DpoSection)
        self.job = job
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
        hard = self.job.settings.labels == "hard"
        batch = {
            **self._layout(examples, self.processing_class.pad_token_id),
            "row": torch.tensor(numbers),
            "p_chosen": torch.tensor([1.0 if hard else e.p_chosen for e in examples]),
        }
        for key in ("ref_chosen_logps", "ref_rejected_logps"):
            if key in rows[0]:
                batch[key] = torch.tensor([row[key] for row in rows])
        return batch

    def _sums(self, model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        logps_BT = completion_logps(model, batch, fused=self.accelerator.device.type == "cuda")
        return sum_by_arm(logps_BT, batch)

    def compute_ref_log_probs(self, model: Any, inputs: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the reference's log-probabilities of the chosen and of the rejected answers (B each)."""
        from contextlib import nullcontext
        ...


train = functools.partial(session.train, "dpo", CaiDPOTrainer)
