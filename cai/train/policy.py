"""The policy as PPO trains it: a language model that says, beside every token's log-probability, what it is worth.

Shapes: `B` rows, `T` positions, `C` positions with a target in some row, `M` targets of all rows one after the other,
`L` tokens of the longest answer, `V` vocabulary, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from cai.train.batches import IGNORE, Batch


class Told(NamedTuple):
    """What the policy says of answers, one number per token of theirs, all rows one after the other."""

    logps_M: torch.Tensor
    """Log-probability, in nats."""
    values_M: torch.Tensor
    """Expected return from here on, before the token is written."""
    entropy_M: torch.Tensor | None
    """Entropy of the distribution that the token was drawn from, in nats; None where it was not asked for."""


class Policy(nn.Module):
    """A causal language model with a value head on it, or beside it a critic with one."""

    def __init__(self, model: Any, critic: Any = None) -> None:
        """`model` may carry a LoRA adapter; `critic` is the backbone of a model of its own, or None."""
        super().__init__()
        self.model, self.critic = model, critic
        self.value = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.value.weight)  # every answer is expected to bring nothing, until shown otherwise
        nn.init.zeros_(self.value.bias)
        self._hidden: torch.Tensor | None = None
        self._with_values = True
        plain = model.get_base_model() if hasattr(model, "get_base_model") else model
        plain.get_output_embeddings().register_forward_pre_hook(self._keep_hidden)

    def _keep_hidden(self, module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        self._hidden = inputs[0]  # the last hidden states of the very columns whose logits are made

    def forward(self, batch: Batch, *, entropy: bool = False) -> Told:
        """Return what is said of every target; the entropy only where it is asked for, since it costs a pass over V."""
        logps_MV, columns_C, marked_BC, targets_M = log_softmax_at(self.model, batch)
        hidden_BCH, self._hidden = self._hidden, None
        if self.critic is not None:
            out = self.critic(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            hidden_BCH = out.last_hidden_state[:, columns_C]
        values_M = self.value(hidden_BCH[marked_BC].float()).squeeze(-1)
        entropy_M = entropy_of(logps_MV) if entropy else None
        return Told(logps_MV.gather(-1, targets_M[:, None]).squeeze(1), values_M, entropy_M)

    def trained(self) -> dict[str, torch.Tensor]:
        """Return the weights that are trained, by name: what a checkpoint must hold."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights that `trained` gave. Raises KeyError or RuntimeError where they are another policy's."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(weights[name])


@torch.no_grad()
def reference_logps(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Return the targets' log-probabilities (M) under the policy that training began with.

    That is `reference`, or where it is None `model` without its adapter.
    """
    with nullcontext() if reference is not None else model.disable_adapter():
        logps_MV, _, _, targets_M = log_softmax_at(model if reference is None else reference, batch)
    return logps_MV.gather(-1, targets_M[:, None]).squeeze(1)


def log_softmax_at(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return log-probabilities of all tokens at every target (M, V), the columns with targets, their marks, targets.

    Logits are made for those columns only.
    """
    targets_BT = batch["targets"]
    columns_C = (targets_BT != IGNORE).any(0).nonzero().squeeze(1)
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"], "use_cache": False}
    logits_BCV = model(**inputs, logits_to_keep=columns_C).logits
    targets_BC = targets_BT[:, columns_C]
    marked_BC = targets_BC != IGNORE
    return torch.log_softmax(logits_BCV[marked_BC].float(), -1), columns_C, marked_BC, targets_BC[marked_BC]


def entropy_of(logps_MV: torch.Tensor) -> torch.Tensor:
    """Return the entropy (M, nats) of distributions given as log-probabilities."""
    return -(logps_MV.exp() * logps_MV).sum(-1)


def spread(flat_M: torch.Tensor, mask_BL: torch.Tensor) -> torch.Tensor:
    """Return one row per answer, zeros after its end (B, L). The flat numbers stand in the order of the rows."""
    rows_BL = torch.zeros(mask_BL.shape, dtype=flat_M.dtype, device=flat_M.device)
    return rows_BL.masked_scatter(mask_BL.to(flat_M.device), flat_M)


def answer_mask(lengths: Sequence[int]) -> torch.Tensor:
    """Return which places of a (B, L) table hold a token."""
    lengths_B = torch.tensor(lengths)
    return torch.arange(int(lengths_B.max()))[None] < lengths_B[:, None]
