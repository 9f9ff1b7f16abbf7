"""The losses of training as pure functions of log-probabilities or rewards, in nats.

Shapes: a name ends in the shape of its tensor. `B` pairs (or rows), `T` tokens.
A log-ratio is the policy's log-probability of an answer minus the reference's.
`p_chosen_B` is the probability that the answer called chosen is the better one: 1 is a hard label, one half a tie.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


def soft_bradley_terry(chosen_B: torch.Tensor, rejected_B: torch.Tensor, p_chosen_B: torch.Tensor) -> torch.Tensor:
    """Return the loss per pair of two rewards under Bradley–Terry, towards a label that may be soft (B).

    Cross-entropy between the label and sigmoid(chosen - rejected): Christiano et al. 2017 (1706.03741), eq. 1 and the
    sum below it, where the label is a distribution; Bai et al. 2022 (2212.08073), §4.1, train towards the judge's
    probability in this way. With p_chosen = 1 it is the usual -log sigmoid(chosen - rejected).
    """
    margin_B = chosen_B - rejected_B
    return -(p_chosen_B * F.logsigmoid(margin_B) + (1 - p_chosen_B) * F.logsigmoid(-margin_B))


def soft_dpo(
    chosen_logratio_B: torch.Tensor, rejected_logratio_B: torch.Tensor, p_chosen_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """Return the DPO loss per pair towards a soft label (B).

    Rafailov et al. 2023 (2305.18290), eq. 7, with the expectation over the label taken: Bradley–Terry over the
    implicit rewards beta * log-ratio. p_chosen = 1 gives TRL's `sigmoid`; p_chosen = 1 - eps for all pairs is the
    conservative DPO of Mitchell 2023. It is lowest where sigmoid(beta * margin) = p_chosen, so a doubtful pair stops
    pulling once the policy doubts as much, and a tie pulls the two log-ratios together.
    """
    return soft_bradley_terry(beta * chosen_logratio_B, beta * rejected_logratio_B, p_chosen_B)


def soft_ipo(
    chosen_mean_logratio_B: torch.Tensor, rejected_mean_logratio_B: torch.Tensor, p_chosen_B: torch.Tensor, tau: float
) -> torch.Tensor:
    """Return the IPO loss per pair towards a soft label (B). Log-ratios are means per completion token, as in TRL.

    Azar et al. 2023 (2310.12036), eq. 17, with the expectation over the label taken:
    p (h - 1/(2 tau))^2 + (1 - p) (h + 1/(2 tau))^2. It is lowest at h = (2p - 1) / (2 tau).
    """
    gap_B = chosen_mean_logratio_B - rejected_mean_logratio_B
    target = 1 / (2 * tau)
    return p_chosen_B * (gap_B - target) ** 2 + (1 - p_chosen_B) * (gap_B + target) ** 2


def nll_per_token(logps_BT: torch.Tensor, mask_BT: torch.Tensor, n_tokens: torch.Tensor | int | None = None):
    """Return the negative log-likelihood per token (a scalar) over the tokens that `mask_BT` marks.

    `n_tokens` is what to divide by, for a batch that is only a part of an optimizer step; None counts the mask.
    A batch without any marked token gives zero, not NaN.
    """
    count = mask_BT.sum() if n_tokens is None else n_tokens
    return -(logps_BT * mask_BT).sum() / torch.as_tensor(count, device=logps_BT.device).clamp(min=1)


def k3_kl(logps_T: torch.Tensor, reference_logps_T: torch.Tensor) -> torch.Tensor:
    """Return an estimate of KL(policy || reference) for each token of text the policy wrote (T, nats, never negative).

    Schulman 2020, "Approximating KL divergence", estimator k3: exp(r) - 1 - r with r = reference - policy. Unbiased,
    and less noisy than -r.
    """
    log_ratio_T = reference_logps_T - logps_T
    return torch.expm1(log_ratio_T) - log_ratio_T
