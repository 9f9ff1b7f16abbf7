"""The losses of training as pure functions of log-probabilities or rewards, in nats.

Shapes: a name ends in the shape of its tensor. `B` pairs (or rows), `T` tokens.
A log-ratio is the policy's log-probability of an answer minus the reference's; a mean one is divided by the answer's
tokens. `p_chosen_B` is the probability that the answer called chosen is the better one: 1 is a hard label, one half a
tie. Every pairwise loss here is an expectation over that label, p * loss(chosen wins) + (1 - p) * loss(rejected wins),
so that `smoothed` and `unbiased` labels give the conservative and the robust form of each.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

# --- labels -----------------------------------------------------------------------------------------------------------


def smoothed(p_chosen_B: torch.Tensor, flip: float) -> torch.Tensor:
    """Return labels that allow for a share `flip` of wrong ones: p (1 - flip) + (1 - p) flip (B).

    Conservative DPO (Mitchell 2023, "A note on DPO with noisy preferences", eq. 3) is `soft_dpo` towards these.
    """
    return p_chosen_B * (1 - flip) + (1 - p_chosen_B) * flip


def unbiased(p_chosen_B: torch.Tensor, flip: float) -> torch.Tensor:
    """Return labels whose loss is, on average over random flips, the loss of the labels before them (B).

    The inverse of `smoothed`; outside 0 to 1 for a hard label, on purpose. Robust DPO (Chowdhury et al. 2024,
    2403.00409, eq. 11) is `soft_dpo` towards these; TRL's `robust`. `flip` must lie below one half.
    """
    return (p_chosen_B - flip) / (1 - 2 * flip)


def outcomes(p_chosen_B: torch.Tensor, p_tie_B: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the probabilities that chosen wins, that both tie and that rejected wins (B each, adding up to 1).

    Half of a tie counts for `p_chosen`, as the pipeline writes it. A tie can take no more than twice the smaller side.
    """
    p_tie_B = torch.minimum(p_tie_B, 2 * torch.minimum(p_chosen_B, 1 - p_chosen_B))
    return p_chosen_B - p_tie_B / 2, p_tie_B, 1 - p_chosen_B - p_tie_B / 2


# --- rewards ----------------------------------------------------------------------------------------------------------


def soft_bradley_terry(
    chosen_B: torch.Tensor, rejected_B: torch.Tensor, p_chosen_B: torch.Tensor, margin_B: torch.Tensor | float = 0.0
) -> torch.Tensor:
    """Return the loss per pair of two rewards under Bradley–Terry, towards a label that may be soft (B).

    Cross-entropy between the label and sigmoid(chosen - rejected): Christiano et al. 2017 (1706.03741), eq. 1 and the
    sum below it, where the label is a distribution; Bai et al. 2022 (2212.08073), §4.1, train towards the judge's
    probability in this way. With p_chosen = 1 it is the usual -log sigmoid(chosen - rejected). Whoever wins has to win
    by `margin_B` (Touvron et al. 2023, 2307.09288, eq. 2); TRL's `margin`.
    """
    gap_B = chosen_B - rejected_B
    return -(p_chosen_B * F.logsigmoid(gap_B - margin_B) + (1 - p_chosen_B) * F.logsigmoid(-gap_B - margin_B))


def rao_kupper(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    p_chosen_B: torch.Tensor,
    p_tie_B: torch.Tensor,
    tie_at_equal: float,
    margin_B: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Return the loss per pair of two rewards where ties are outcomes of their own (B).

    Rao and Kupper 1967, "Ties in paired-comparison experiments", eq. 2.2: P(chosen wins) = sigmoid(gap - ln theta),
    P(tie) = (theta^2 - 1) P(chosen wins) P(rejected wins). Two equal rewards tie with probability
    (theta - 1) / (theta + 1), which is what `tie_at_equal` (0 to 1, both excluded) sets.
    """
    log_theta = math.log((1 + tie_at_equal) / (1 - tie_at_equal))
    gap_B = chosen_B - rejected_B
    win_B, lose_B = F.logsigmoid(gap_B - log_theta - margin_B), F.logsigmoid(-gap_B - log_theta - margin_B)
    tie_B = math.log(math.expm1(2 * log_theta)) + win_B + lose_B
    q_win_B, q_tie_B, q_lose_B = outcomes(p_chosen_B, p_tie_B)
    return -(q_win_B * win_B + q_tie_B * tie_B + q_lose_B * lose_B)


def davidson(
    chosen_B: torch.Tensor,
    rejected_B: torch.Tensor,
    p_chosen_B: torch.Tensor,
    p_tie_B: torch.Tensor,
    tie_at_equal: float,
    margin_B: torch.Tensor | float = 0.0,
) -> torch.Tensor:
    """Return the loss per pair of two rewards where ties are outcomes of their own (B).

    Davidson 1970, "On extending the Bradley-Terry model to accommodate ties", eq. 2.2: the three outcomes go as
    exp(gap / 2), nu and exp(-gap / 2). Two equal rewards tie with probability nu / (2 + nu), which `tie_at_equal` sets.
    """
    log_nu = math.log(2 * tie_at_equal / (1 - tie_at_equal))
    half_B = (chosen_B - rejected_B) / 2
    tie_B = torch.full_like(half_B, log_nu)
    logps_B3 = torch.stack((half_B - margin_B / 2, tie_B, -half_B - margin_B / 2), -1).log_softmax(-1)
    return -(torch.stack(outcomes(p_chosen_B, p_tie_B), -1) * logps_B3).sum(-1)


def centering(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
    """Return the square of the sum of a pair's rewards (B), which pulls their mean to zero.

    Eisenstein et al. 2023 (2312.09244), eq. 2: differences do not say where zero lies. TRL's
    `center_rewards_coefficient` is its weight.
    """
    return (chosen_B + rejected_B) ** 2


# --- policies against a reference -------------------------------------------------------------------------------------


def soft_dpo(
    chosen_logratio_B: torch.Tensor, rejected_logratio_B: torch.Tensor, p_chosen_B: torch.Tensor, beta: float
) -> torch.Tensor:
    """Return the DPO loss per pair towards a soft label (B).

    Rafailov et al. 2023 (2305.18290), eq. 7, with the expectation over the label taken: Bradley–Terry over the
    implicit rewards beta * log-ratio. p_chosen = 1 gives TRL's `sigmoid`. It is lowest where
    sigmoid(beta * margin) = p_chosen, so a doubtful pair stops pulling once the policy doubts as much, and a tie pulls
    the two log-ratios together.
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


def soft_kto(
    logratio_B: torch.Tensor,
    p_desirable_B: torch.Tensor,
    kl: torch.Tensor | float,
    beta: float,
    desirable_weight: float = 1.0,
    undesirable_weight: float = 1.0,
) -> torch.Tensor:
    """Return the KTO loss per answer towards a soft label (B).

    Ethayarajh et al. 2024 (2402.01306), eq. 7 and 8, with the expectation over the label taken: a desirable answer
    costs 1 - sigmoid(beta (r - z)), an undesirable one 1 - sigmoid(beta (z - r)). `kl` is z, the divergence from the
    reference in nats, taken as a constant and never below zero.
    """
    gain_B = torch.sigmoid(beta * (logratio_B - kl))
    desirable_B = desirable_weight * p_desirable_B * (1 - gain_B)
    return desirable_B + undesirable_weight * (1 - p_desirable_B) * gain_B


# --- policies without a reference -------------------------------------------------------------------------------------


def soft_orpo(chosen_mean_B: torch.Tensor, rejected_mean_B: torch.Tensor, p_chosen_B: torch.Tensor) -> torch.Tensor:
    """Return ORPO's odds-ratio loss per pair towards a soft label (B), of mean log-probabilities per token.

    Hong et al. 2024 (2403.07691), eq. 7: Bradley–Terry over the log-odds ln(P / (1 - P)) of the two answers. The
    objective (eq. 6) adds the chosen answer's negative log-likelihood to a small multiple of it.
    """
    return soft_bradley_terry(_log_odds(chosen_mean_B), _log_odds(rejected_mean_B), p_chosen_B)


def soft_simpo(
    chosen_mean_B: torch.Tensor, rejected_mean_B: torch.Tensor, p_chosen_B: torch.Tensor, beta: float, gamma: float
) -> torch.Tensor:
    """Return the SimPO loss per pair towards a soft label (B), of mean log-probabilities per token.

    Meng et al. 2024 (2405.14734), eq. 6: the reward is beta * mean log-probability, and the winner has to win by gamma.
    """
    return soft_bradley_terry(beta * chosen_mean_B, beta * rejected_mean_B, p_chosen_B, gamma)


def _log_odds(mean_logp_B: torch.Tensor) -> torch.Tensor:
    """Return ln(P / (1 - P)). Above P = 1/2 the difference is taken by expm1, where log1p would lose its digits."""
    mean_logp_B = mean_logp_B.clamp(max=-1e-7)
    near_one_B = mean_logp_B > -math.log(2)
    log_rest_B = torch.where(
        near_one_B,
        torch.log(-torch.expm1(torch.where(near_one_B, mean_logp_B, -1.0))),
        torch.log1p(-torch.exp(torch.where(near_one_B, -1.0, mean_logp_B))),
    )
    return mean_logp_B - log_rest_B


# --- tokens -----------------------------------------------------------------------------------------------------------


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
