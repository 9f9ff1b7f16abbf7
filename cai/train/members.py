"""How the heads of reward models become one reward: principles by their weights, an ensemble's members by agreement.

Shapes: `N` answers, `K` heads of one model, `M` members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from cai.errors import UserError

How = Literal["mean", "worst", "cautious"]


def weighed(
    scores_NK: torch.Tensor, principles: Sequence[str], weights: Mapping[str, float] | None = None
) -> torch.Tensor:
    """Return the weighted mean over the principles' heads (N). Principles that `weights` does not name weigh 1."""
    weights = weights or {}
    if unknown := sorted(set(weights) - set(principles)):
        known = ", ".join(principles) or "none"
        raise UserError(f"no head for principle '{unknown[0]}'; this reward model has {known}")
    weight_K = torch.tensor([weights.get(p, 1.0) for p in principles])
    if weight_K.min() < 0 or not weight_K.sum():
        raise UserError("weights of principles must be 0 or more, and not all 0")
    return scores_NK @ (weight_K / weight_K.sum())


def combined(members_NM: torch.Tensor, how: How, caution: float = 0.1) -> torch.Tensor:
    """Return one reward per answer from those of an ensemble's members (N).

    `worst` is the smallest, `cautious` the mean minus `caution` times the variance: Coste et al. 2023 (2310.02743),
    §3.2, WCO and UWO, which keep a policy from what only some members like.
    """
    if how == "mean":
        return members_NM.mean(1)
    if how == "worst":
        return members_NM.min(1).values
    return members_NM.mean(1) - caution * members_NM.var(1, unbiased=False)
