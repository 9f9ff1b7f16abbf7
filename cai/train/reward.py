"""The reward model: TRL's RewardTrainer with soft labels, ties, margins, several heads and our batches.

A head is one number per answer. One head is the usual model; k heads are an ensemble over one trunk, each head on its
own bootstrap of the rows; a head per principle is trained on that principle's votes, so that the principles can be
weighed anew when answers are scored.
"""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, set_seed
from transformers.modeling_outputs import SequenceClassifierOutputWithPast
from trl import RewardConfig, RewardTrainer
from trl.trainer.reward_trainer import suppress_seqcls_warning

from cai import canon
from cai.config import RewardSection
from cai.errors import UserError
from cai.manifest import write_atomically
from cai.model.code import asked_for
from cai.train import losses, session
from cai.train.batches import Batch, scores_by_arm, shared_answers, stacked_answers
from cai.train.data import Example
from cai.train.job import Job
from cai.train.trainer import Hooks, arguments, dataset, lora_config, quantization, weight_dtype

HELD_OUT = "held_out.jsonl"
"""Scores of the held-out pairs, and of as many training pairs beside them; see `cai.evaluate.rewards`."""


class CaiRewardTrainer(Hooks, RewardTrainer):
    """TRL's RewardTrainer on rows of cai.train.data."""

    def __init__(self, job: Job, tokenizer: Any) -> None:
        assert isinstance(job.settings, RewardSection)
        self.job, self.reward = job, job.settings
        self.principles = voting_principles(job.examples) if job.settings.heads == "principles" else []
        n_heads = len(self.principles) or int(job.settings.heads)
        self._targets_NK, self._weights_NK = targets(job.examples, self.principles, n_heads, job.seed)
        set_seed(job.seed)  # the heads are drawn before TRL would set it
        how = {"quantized": quantization(job), "trust_remote_code": job.trust_remote_code}
        model = load_scorer(job.base, n_heads, weight_dtype(job), **how)
        self._layout = shared_answers if shares_prompts(model, job.examples, tokenizer) else stacked_answers
        model.config.num_labels = 1  # TRL insists on one label; the head keeps its width
        super().__init__(
            model=model,
            args=RewardConfig(**arguments(job), center_rewards_coefficient=job.settings.centering or None),
            data_collator=self._collate,
            train_dataset=dataset(job),
            processing_class=tokenizer,
            peft_config=lora_config(job.settings, task="SEQ_CLS"),
        )
        self.accelerator.unwrap_model(self.model).config.num_labels = n_heads

    def _collate(self, rows: list[dict[str, Any]]) -> Batch:
        numbers = torch.tensor([row["row"] for row in rows])
        examples = [self.job.examples[i] for i in numbers.tolist()]
        return {
            **self._layout(examples, self.processing_class.pad_token_id),
            "row": numbers,
            "target": self._targets_NK[numbers],
            "weight": self._weights_NK[numbers],
            "p_tie": torch.tensor([e.p_tie for e in examples])[:, None],
            "margin": torch.tensor([e.margin for e in examples])[:, None],
        }

    def compute_loss(
        self, model: Any, inputs: Batch, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Return the weighted loss, a mean over pairs and heads."""
        chosen_BK, rejected_BK = scores_by_arm(scores(model, inputs), len(inputs["row"]))
        loss_BK = self._loss(chosen_BK, rejected_BK, inputs)
        if self.args.center_rewards_coefficient is not None:
            loss_BK = loss_BK + self.args.center_rewards_coefficient * losses.centering(chosen_BK, rejected_BK)
        loss = (inputs["weight"] * loss_BK).mean()
        self.n_tokens_seen += int(inputs["position_ids" if "position_ids" in inputs else "attention_mask"].ne(0).sum())
        self._note(chosen_BK.detach(), rejected_BK.detach(), inputs["weight"])
        return self.checked(loss, inputs)

    def _loss(self, chosen_BK: torch.Tensor, rejected_BK: torch.Tensor, inputs: Batch) -> torch.Tensor:
        """Return the loss of every pair and head (B, K)."""
        label_BK, tie_B1, margin_B1 = inputs["target"], inputs["p_tie"], inputs["margin"]
        if self.reward.labels == "hard":
            label_BK, tie_B1 = (label_BK >= 0.5).float(), torch.zeros_like(tie_B1)
        label_BK = losses.smoothed(label_BK, self.reward.label_noise)
        if self.reward.ties == "half":
            return losses.soft_bradley_terry(chosen_BK, rejected_BK, label_BK, margin_B1)
        model = losses.rao_kupper if self.reward.ties == "rao-kupper" else losses.davidson
        tie_BK = torch.zeros_like(label_BK) if self.principles else tie_B1.expand_as(label_BK)
        return model(chosen_BK, rejected_BK, label_BK, tie_BK, self.reward.tie_at_equal, margin_B1)

    def _note(self, chosen_BK: torch.Tensor, rejected_BK: torch.Tensor, weight_BK: torch.Tensor) -> None:
        """Keep what a reader of the curve wants to see beside the loss."""
        counted_BK = weight_BK > 0
        gap = self.accelerator.gather((chosen_BK - rejected_BK)[counted_BK].mean()[None]).mean()
        right = self.accelerator.gather((chosen_BK > rejected_BK)[counted_BK].float().mean()[None]).mean()
        self._metrics["train"]["margin"].append(gap.item())
        self._metrics["train"]["accuracy"].append(right.item())
        self._metrics["train"]["mean_reward"].append(((chosen_BK + rejected_BK) / 2).mean().item())

    def facts(self) -> dict[str, Any]:
        """Return what the checkpoint's manifest says of its heads."""
        n_heads = self._targets_NK.shape[1]
        return {"reward": {"heads": n_heads, "principles": self.principles, "ties": self.reward.ties}}

    def held_out(self, examples: list[Example], folder: Path) -> None:
        """Write the scores of held-out pairs and of as many training pairs to `folder`."""
        dice = random.Random(self.job.seed)
        seen = dice.sample(self.job.examples, min(len(self.job.examples), len(examples)))
        model = self.accelerator.unwrap_model(self.model)
        lines = []
        for part, rows in (("held_out", examples), ("train", seen)):
            found_N2K = score_pairs(model, rows, self.processing_class.pad_token_id, self._layout)
            for example, (chosen_K, rejected_K) in zip(rows, found_N2K.tolist(), strict=True):
                n_tokens = [len(c) for c in example.completions]
                row = {"part": part, "pair_id": example.id, "p_chosen": example.p_chosen, "votes": example.votes}
                lines.append({**row, "chosen": chosen_K, "rejected": rejected_K, "n_tokens": n_tokens})
        if self.is_world_process_zero():
            write_atomically(folder / HELD_OUT, b"".join(canon.dumps(line) + b"\n" for line in lines))


def voting_principles(examples: list[Example]) -> list[str]:
    """Return the principles that voted on at least one pair, sorted. Raises UserError where none did."""
    found = sorted({name for e in examples for name in e.votes})
    if not found:
        raise UserError(
            "train.reward.heads: 'principles' needs votes per principle, and no row has any; train on a "
            "run's own pairs (their provenance holds the votes), or set heads: 1"
        )
    return found


def targets(
    examples: list[Example], principles: list[str], n_heads: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return for every row and head the label and the weight (N, K). The weights' mean over what counts is 1.

    A principle's head has no weight where it did not vote. Heads of an ensemble weigh each row by Poisson(1), which is
    the bootstrap where rows come one by one (Oza and Russell 2001, "Online bagging and boosting", §3).
    """
    weight_N1 = torch.tensor([e.weight for e in examples])[:, None]
    if not weight_N1.sum():
        raise UserError("every row has weight 0, so there is nothing to train on; give some rows a weight")
    if principles:
        target_NK = torch.tensor([[e.votes.get(p, 0.5) for p in principles] for e in examples])
        weight_NK = weight_N1 * torch.tensor([[float(p in e.votes) for p in principles] for e in examples])
    else:
        target_NK = torch.tensor([e.p_chosen for e in examples])[:, None].expand(-1, n_heads)
        weight_NK = weight_N1.expand(-1, n_heads)
    if n_heads > 1 and not principles:
        dice = torch.Generator().manual_seed(canon.seed_of("bootstrap", seed))
        weight_NK = weight_NK * torch.poisson(torch.ones(weight_NK.shape), generator=dice)
    counted = weight_NK[weight_NK > 0] if principles else weight_N1
    return target_NK.contiguous(), weight_NK / counted.mean()


def load_scorer(
    base: str, n_heads: int, dtype: torch.dtype, quantized: Any = None, *, trust_remote_code: bool = False
) -> Any:
    """Return a model that gives `n_heads` scores wherever an answer `ends`, heads drawn anew unless it has them."""
    with suppress_seqcls_warning(), asked_for(base):
        model = AutoModelForSequenceClassification.from_pretrained(
            base,
            num_labels=n_heads,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            quantization_config=quantized,
        )
    model.config.use_cache = False
    trunk = getattr(model, model.base_model_prefix)

    def forward(
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        ends: torch.Tensor | None = None,
        **_: Any,
    ) -> SequenceClassifierOutputWithPast:
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "position_ids": position_ids}
        hidden_RTD = trunk(**inputs, use_cache=False).last_hidden_state
        rows_R1 = torch.arange(len(hidden_RTD), device=hidden_RTD.device)[:, None]
        # The head runs where answers end, not at every position.
        kinds = [weight.dtype for weight in model.score.parameters()]
        at_ends_RED = hidden_RTD[rows_R1, ends].to(torch.float32 if torch.float32 in kinds else kinds[0])
        return SequenceClassifierOutputWithPast(logits=model.score(at_ends_RED))

    model.forward = forward
    return model


def scores(model: Any, batch: Batch) -> torch.Tensor:
    """Return the scores at every end (R, E, K), in float32."""
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids", "ends") if k in batch}
    return model(**inputs).logits.float()


def score_pairs(model: Any, examples: list[Example], pad_id: int, layout: Any, *, n_tokens: int = 4096) -> torch.Tensor:
    """Return the scores of pairs, chosen and rejected (N, 2, K). A batch holds about `n_tokens` tokens."""
    order = sorted(range(len(examples)), key=lambda i: examples[i].n_tokens)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    found: dict[int, torch.Tensor] = {}
    with torch.no_grad():
        while order:
            n_rows = max(1, min(len(order), n_tokens // examples[order[-1]].n_tokens))
            rows, order = order[-n_rows:], order[:-n_rows]
            batch = {k: v.to(device) for k, v in layout([examples[i] for i in rows], pad_id).items()}
            both_B2K = torch.stack(scores_by_arm(scores(model, batch), len(rows)), 1).cpu()
            found.update(zip(rows, both_B2K, strict=True))
    model.train(was_training)
    return torch.stack([found[i] for i in range(len(examples))])


def shares_prompts(model: Any, examples: list[Example], tokenizer: Any) -> bool:
    """Return whether `model` gives the same scores in the shared layout, tried on the shortest pairs."""
    if getattr(model.config.get_text_config(), "_attn_implementation", None) != "sdpa":
        return False
    probe = sorted(examples, key=lambda e: e.n_tokens)[:2]
    stacked, shared = (score_pairs(model, probe, tokenizer.pad_token_id, f) for f in (stacked_answers, shared_answers))
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return bool((stacked - shared).abs().max() < tolerance)


train = functools.partial(session.train, "reward", CaiRewardTrainer)
