"""Supervised fine-tuning on revisions (SL-CAI, Bai et al. 2022, §3): TRL's SFTTrainer with our batches."""

from __future__ import annotations

import functools
from typing import Any

import torch
from trl import SFTConfig, SFTTrainer

from cai.train import losses, session
from cai.train.batches import IGNORE, completion_logps, sft_batch
from cai.train.job import Job
from cai.train.trainer import Hooks, arguments, dataset, load_model, lora_config


class CaiSFTTrainer(Hooks, SFTTrainer):
    """TRL's SFTTrainer on rows of cai.train.data; the loss is over completion tokens only."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        self.job = job
        super().__init__(
            model=load_model(job),
            args=SFTConfig(**arguments(job), dataset_kwargs={"skip_prepare_dataset": True}),
            data_collator=self._collate,
            train_dataset=dataset(job),
            processing_class=tokenizer,
            peft_config=lora_config(job.settings),
        )

    def _collate(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        numbers = [row["row"] for row in rows]
        batch = sft_batch([self.job.examples[i] for i in numbers], self.processing_class.pad_token_id)
        return {**batch, "row": torch.tensor(numbers)}

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the negative log-likelihood per completion token of the whole optimizer step."""
        logps_BT = completion_logps(model, inputs, fused=self.accelerator.device.type == "cuda")
        self.n_tokens_seen += int(inputs["attention_mask"].sum())
        loss = losses.nll_per_token(logps_BT, inputs["targets"] != IGNORE, num_items_in_batch)
        if num_items_in_batch is not None and self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # the count is over all processes, gradients are averaged
        return self.checked(loss, inputs)


train = functools.partial(session.train, "sft", CaiSFTTrainer)
