"""Batches of examples as tensors, and the log-probabilities a model gives to their completions.

Shapes: `B` rows, `T` positions, `C` positions with a target. A target stands at the position that predicts it.

A pair is laid out in one of two ways. *Shared*: prompt, chosen and rejected in one row, where an attention mask hides
the two answers from each other and both count their positions on from the prompt; the prompt is computed once.
*Stacked*: the chosen rows, then the rejected rows, each with its own prompt; every model can do that.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from cai.train.data import Example

IGNORE = -100
Batch = dict[str, torch.Tensor]


def sft_batch(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return input_ids, attention_mask, labels and targets (B, T). Labels stand at their own place, targets before."""
    return _rows([(e.prompt_ids, e.completions[0]) for e in examples], pad_id)


def stacked_pairs(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch of 2B rows, the chosen ones first, with `arm` 0 (chosen) or 1 (rejected) for every target.

    Examples with further completions add further arms.
    """
    n_arms = len(examples[0].completions)
    batch = _rows([(e.prompt_ids, e.completions[arm]) for arm in range(n_arms) for e in examples], pad_id)
    batch.pop("labels")
    arm = torch.arange(n_arms).repeat_interleave(len(examples))
    return {**batch, "arm": arm[:, None].expand_as(batch["targets"])}


def shared_pairs(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch of B rows, each a prompt with both of its answers.

    The prompt's last token is repeated before each answer, so that every position predicts one token.
    """
    rows = [_tree(e) for e in examples]
    width = max(len(row[0]) for row in rows)
    filler = (pad_id, 0, IGNORE, -1)
    # Padding stands before the rows: so the answers stand in the same columns, and logits are made for few others.
    columns = [torch.tensor([[filler[k]] * (width - len(row[k])) + row[k] for row in rows]) for k in range(len(filler))]
    input_ids, position_ids, targets, branch = columns
    return {
        "input_ids": input_ids,
        "position_ids": position_ids,
        "attention_mask": _tree_mask(branch),
        "targets": targets,
        "arm": (branch - 1).clamp(min=0),
    }


def shared_answers(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch of B rows, each a prompt with both of its answers, and where each answer ends (B, 2)."""
    width = max(e.n_tokens for e in examples)
    ids, positions, branches, ends = [], [], [], []
    for example in examples:
        row, place, branch, end = list(example.prompt_ids), list(range(len(example.prompt_ids))), [], []
        branch += [0] * len(row)
        for arm, completion in enumerate(example.completions, 1):
            place += range(len(example.prompt_ids), len(example.prompt_ids) + len(completion))
            row += completion
            branch += [arm] * len(completion)
            end.append(len(row) - 1)
        n_pad = width - len(row)
        ids.append(row + [pad_id] * n_pad)
        positions.append(place + [0] * n_pad)
        branches.append(branch + [-1] * n_pad)
        ends.append(end)
    return {
        "input_ids": torch.tensor(ids),
        "position_ids": torch.tensor(positions),
        "attention_mask": _tree_mask(torch.tensor(branches)),
        "ends": torch.tensor(ends),
    }


def stacked_answers(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch of 2B rows, the chosen ones first, and where each answer ends (2B, 1)."""
    rows = [(e.prompt_ids, e.completions[arm]) for arm in range(len(examples[0].completions)) for e in examples]
    batch = _rows(rows, pad_id)
    ends = torch.tensor([[len(prompt) + len(completion) - 1] for prompt, completion in rows])
    return {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "ends": ends}


def scores_by_arm(scores_REK: torch.Tensor, n_pairs: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scores of the chosen and of the rejected answers (B, K) from those at the ends of either layout."""
    if len(scores_REK) == n_pairs:
        return scores_REK[:, 0], scores_REK[:, 1]
    return scores_REK[:n_pairs, 0], scores_REK[n_pairs:, 0]


def completion_logps(model: Any, batch: Batch, *, fused: bool) -> torch.Tensor:
    """Return the log-probability of every target (B, T), zero where there is none, in float32.

    `fused` takes TRL's fused LM head, which never holds the logits; it needs Triton. Without it logits are made for
    the columns that hold a target, which on a CPU saves most of the work on the prompts' share of the vocabulary.
    """
    inputs = {k: batch[k] for k in ("input_ids", "attention_mask", "position_ids") if k in batch}
    targets_BT = batch["targets"]
    if fused:
        out = model(**inputs, shift_labels=targets_BT, fused_lm_head=True, use_cache=False)
        return out.log_probs.float()
    columns_C = (targets_BT != IGNORE).any(0).nonzero().squeeze(1)
    logits_BCV = model(**inputs, logits_to_keep=columns_C, use_cache=False).logits
    targets_BC = targets_BT[:, columns_C]
    marked_BC = targets_BC != IGNORE
    logps = torch.log_softmax(logits_BCV[marked_BC].float(), -1).gather(-1, targets_BC[marked_BC][:, None]).squeeze(1)
    empty_BC = torch.zeros(targets_BC.shape, dtype=logps.dtype, device=logps.device)
    filled_BC = empty_BC.masked_scatter(marked_BC, logps)
    return torch.zeros(targets_BT.shape, dtype=logps.dtype, device=logps.device).index_copy(1, columns_C, filled_BC)


def sum_by_arm(values_BT: torch.Tensor, batch: Batch, n_arms: int = 2) -> tuple[torch.Tensor, ...]:
    """Return the sums over the chosen, the rejected and any further answers' targets (one number per pair each)."""
    marked_BT = batch["targets"] != IGNORE
    sums = [(values_BT * (marked_BT & (batch["arm"] == arm))).sum(1) for arm in range(n_arms)]
    if "position_ids" in batch:
        return tuple(sums)
    n_pairs = len(values_BT) // n_arms
    return tuple(sums[arm][arm * n_pairs : (arm + 1) * n_pairs] for arm in range(n_arms))


def can_share(model: Any, examples: Sequence[Example], pad_id: int) -> bool:
    """Return whether `model` gives the same log-probabilities in the shared layout, tried on the shortest pairs.

    Models with sliding windows, recurrence or positions of another kind do not; trying tells more than any list.
    """
    if getattr(model.config.get_text_config(), "_attn_implementation", None) != "sdpa":
        return False
    probe = sorted(examples, key=lambda e: e.n_tokens)[:2]
    device = next(model.parameters()).device
    means = []
    with torch.no_grad():
        for layout in (stacked_pairs, shared_pairs):
            batch = {k: v.to(device) for k, v in layout(probe, pad_id).items()}
            logps_BT = completion_logps(model, batch, fused=False)
            marked_BT = (batch["targets"] != IGNORE).float()
            n_tokens, sums = sum_by_arm(marked_BT, batch), sum_by_arm(logps_BT, batch)
            means.append(torch.cat(sums) / torch.cat(n_tokens))
    tolerance = 1e-3 if next(model.parameters()).dtype == torch.float32 else 5e-2
    return bool((means[0] - means[1]).abs().max() < tolerance)


def _rows(rows: Sequence[tuple[list[int], list[int]]], pad_id: int) -> Batch:
    width = max(len(prompt) + len(completion) for prompt, completion in rows)
    ids, mask, labels = [], [], []
    for prompt, completion in rows:
        n_pad = width - len(prompt) - len(completion)
        ids.append(prompt + completion + [pad_id] * n_pad)
        mask.append([1] * (width - n_pad) + [0] * n_pad)
        labels.append([IGNORE] * len(prompt) + completion + [IGNORE] * n_pad)
    labels_BT = torch.tensor(labels)
    return {
        "input_ids": torch.tensor(ids),
        "attention_mask": torch.tensor(mask),
        "labels": labels_BT,
        "targets": torch.nn.functional.pad(labels_BT[:, 1:], (0, 1), value=IGNORE),
    }


def _tree(example: Example) -> tuple[list[int], list[int], list[int], list[int]]:
    """Return ids, positions, targets and branches (0 prompt, 1 chosen, 2 rejected) of one pair."""
    stem, last = example.prompt_ids[:-1], example.prompt_ids[-1]
    ids, positions = list(stem), list(range(len(stem)))
    targets, branch = [IGNORE] * len(stem), [0] * len(stem)
    for arm, completion in enumerate(example.completions, 1):
        ids += [last, *completion[:-1]]
        positions += range(len(stem), len(stem) + len(completion))
        targets += completion
        branch += [arm] * len(completion)
    return ids, positions, targets, branch


def _tree_mask(branch_BT: torch.Tensor) -> torch.Tensor:
    """Return who may look at whom (B, 1, T, T): earlier positions of the prompt and of one's own branch."""
    key, query = branch_BT[:, None, None, :], branch_BT[:, None, :, None]
    width = branch_BT.shape[1]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    return causal & ((key == 0) | (key == query))
