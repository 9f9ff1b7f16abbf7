"""The policy as PPO trains it: a language model that says, beside every token's log-probability, what it is worth.

Shapes: `B` rows, `T` positions, `M` targets of all rows one after the other, `L` tokens of the longest answer,
`V` vocabulary, `H` hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import nn

from cai.train.batches import IGNORE, Batch
from cai.train.sharding import parted


class Told(NamedTuple):
    """What the policy says of answers, one number per token of theirs, all rows one after the other."""

    logps_M: torch.Tensor
    """Log-probability, in nats."""
    values_M: torch.Tensor
    """Expected return from here on, before the token is written."""
    entropy_M: torch.Tensor | None
    """Entropy of the distribution that the token was drawn from, in nats; None where it was not asked for."""


class AtTargets(NamedTuple):
    """What a language model says where it predicts a target."""

    logps_MV: torch.Tensor
    """Log-probabilities of all tokens, in nats and float32."""
    hidden_MH: torch.Tensor
    """The last hidden states, which the logits were made of."""
    targets_M: torch.Tensor
    """The tokens that stand there."""

    @property
    def logps_M(self) -> torch.Tensor:
        """Log-probabilities of the targets."""
        return self.logps_MV.gather(-1, self.targets_M[:, None]).squeeze(1)


class Policy(nn.Module):
    """A causal language model with a value head on it, or beside it a critic with one."""

    def __init__(self, model: Any, critic: Any = None, *, learns_entropy: bool = False) -> None:
        """`model` may carry a LoRA adapter; `critic` is the backbone of a model of its own, or None.

        Without `learns_entropy` the entropy is told without its gradient, which would hold another tensor over V.
        """
        super().__init__()
        self.model, self.critic, self._learns_entropy = model, critic, learns_entropy
        self.value = nn.Linear(model.config.get_text_config().hidden_size, 1, dtype=torch.float32)
        nn.init.zeros_(self.value.weight)  # every answer is expected to bring nothing, until shown otherwise
        nn.init.zeros_(self.value.bias)

    def forward(self, batch: Batch, *, entropy: bool = False) -> Told:
        """Return what is said of every target; the entropy only where it is asked for, since it costs a pass over V."""
        at = at_targets(self.model, batch)
        hidden_MH = at.hidden_MH
        if self.critic is not None:
            out = self.critic(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
            hidden_MH = out.last_hidden_state[batch["targets"] != IGNORE]
        values_M = self.value(hidden_MH.to(self.value.weight.dtype)).float().squeeze(-1)
        logps_MV = at.logps_MV if self._learns_entropy else at.logps_MV.detach()
        return Told(at.logps_M, values_M, entropy_of(logps_MV) if entropy else None)

    @property
    def has_dropout(self) -> bool:
        """Whether two forward passes of the same weights may differ in training."""
        sides = [side for side in (self.model, self.critic) if side is not None]
        drawn = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.modules())
        return drawn or any(getattr(side.config.get_text_config(), "attention_dropout", None) for side in sides)

    def trained(self) -> dict[str, torch.Tensor]:
        """Return the weights that are trained, by name: what a checkpoint must hold."""
        return {name: p.detach() for name, p in self.named_parameters() if p.requires_grad}

    @torch.no_grad()
    def restore(self, weights: dict[str, torch.Tensor]) -> None:
        """Take over weights that `trained` gave. Raises KeyError or RuntimeError where they are another policy's."""
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(parted(weights[name], parameter))


@torch.no_grad()
def reference_logps(model: Any, reference: Any, batch: Batch) -> torch.Tensor:
    """Return the targets' log-probabilities (M) under the policy that training began with.

    That is `reference`, or where it is None `model` without its adapter.
    """
    with nullcontext() if reference is not None else model.disable_adapter():
        return at_targets(model if reference is None else reference, batch).logps_M


def at_targets(model: Any, batch: Batch) -> AtTargets:
    """Return what a causal language model says at every target.

    The output layer is given the hidden states of the targets and no others: answers begin in different columns, and
    of every column that holds one row's target it would make logits for all rows.
    """
    marked_BT = batch["targets"] != IGNORE
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    kept: list[torch.Tensor] = []

    def only_targets(layer: Any, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        kept.append(inputs[0][marked_BT])
        return (kept[0],)

    hook = plain.get_output_embeddings().register_forward_pre_hook(only_targets)
    try:
        out = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    finally:
        hook.remove()
    return AtTargets(torch.log_softmax(out.logits.float(), -1), kept[0], batch["targets"][marked_BT])


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
