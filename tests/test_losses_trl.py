"""On hard labels our losses and their gradients are those of TRL's own trainers, called here on made-up numbers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cai.train import losses

pytestmark = pytest.mark.filterwarnings("ignore")  # TRL marks some of its trainers as experimental

B = 16
HARD_B = torch.ones(B)
Loss = Callable[..., torch.Tensor]


def drawn(seed: int, scale: float = 3.0) -> torch.Tensor:
    return scale * torch.randn(B, generator=torch.Generator().manual_seed(seed))


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x)


def metrics() -> dict[str, Any]:
    return {"train": defaultdict(list)}


def same_loss_and_gradient(ours: Loss, theirs: Loss, *inputs: torch.Tensor) -> None:
    found = []
    for loss in (ours, theirs):
        leaves = [x.clone().requires_grad_() for x in inputs]
        value = loss(*leaves)
        value.backward()
        found.append((value.item(), torch.cat([x.grad for x in leaves])))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-4)
    assert (found[0][1] - found[1][1]).abs().max() < 1e-4 and found[0][1].abs().max() > 1e-3


# --- RewardTrainer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("margin", [None, drawn(3, 0.5).abs()], ids=["plain", "margin"])
@pytest.mark.parametrize("centre", [None, 0.02], ids=["free", "centred"])
def test_bradley_terry_is_reward_trainer(margin: torch.Tensor | None, centre: float | None) -> None:
    from trl import RewardTrainer

    def theirs(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        def model(**inputs: Any) -> SimpleNamespace:
            return SimpleNamespace(logits=torch.cat((chosen_B, rejected_B))[:, None])

        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator(),
            _metrics=metrics(),
            _tp_size=1,
            _total_train_tokens=0,
            args=SimpleNamespace(center_rewards_coefficient=centre),
        )
        inputs = {"attention_mask": torch.ones(2 * B, 4)} | ({} if margin is None else {"margin": margin})
        return RewardTrainer.compute_loss(trainer, model, inputs)

    def ours(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        loss_B = losses.soft_bradley_terry(chosen_B, rejected_B, HARD_B, 0.0 if margin is None else margin)
        return (loss_B + (centre or 0) * losses.centering(chosen_B, rejected_B)).mean()

    same_loss_and_gradient(ours, theirs, drawn(1), drawn(2))


# --- DPOTrainer and KTOTrainer ------------------------------------------------------------------------------------


def head_outputs(logps_N: torch.Tensor) -> SimpleNamespace:
    """Return what TRL's fused head gives for answers of one token each."""
    nothing_N1 = torch.zeros_like(logps_N)[:, None]
    return SimpleNamespace(
        log_probs=logps_N[:, None], entropy=nothing_N1, mean_logits=nothing_N1, is_top1=nothing_N1.bool()
    )


def answers_of_one_token(n: int) -> dict[str, torch.Tensor]:
    mask = torch.tensor([[0, 1]]).expand(n, 2)
    return {"input_ids": torch.ones(n, 2, dtype=torch.long), "completion_mask": mask, "attention_mask": mask}


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "robust"])
def test_dpo_family_is_dpo_trainer(loss_type: str) -> None:
    from trl import DPOTrainer

    beta, flip = 0.3, 0.1

    def theirs(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator(),
            _metrics=metrics(),
            _tp_size=1,
            _total_train_tokens=0,
            aux_loss_enabled=False,
            ld_alpha=None,
            precompute_ref_logps=True,
            beta=beta,
            f_divergence_type="reverse_kl",
            loss_types=[loss_type],
            loss_weights=[1.0],
            label_smoothing=flip,
            use_weighting=False,
        )
        inputs = {**answers_of_one_token(2 * B), "ref_chosen_logps": drawn(3), "ref_rejected_logps": drawn(4)}
        model = lambda **_: head_outputs(torch.cat((chosen_B, rejected_B)))  # noqa: E731
        return DPOTrainer._compute_loss(trainer, model, inputs, return_outputs=False)

    def ours(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        ratios = chosen_B - drawn(3), rejected_B - drawn(4)
        if loss_type == "ipo":
            return losses.soft_ipo(*ratios, HARD_B, beta).mean()
        labels_B = losses.unbiased(HARD_B, flip) if loss_type == "robust" else HARD_B
        return losses.soft_dpo(*ratios, labels_B, beta).mean()

    same_loss_and_gradient(ours, theirs, drawn(1), drawn(2))


def test_kto_is_kto_trainer() -> None:
    from trl import KTOTrainer

    kl_logps_B, ref_kl_logps_B = drawn(5).abs(), drawn(6).abs() - 2
    labels_B = torch.arange(B) % 3 > 0

    def theirs(logps_B: torch.Tensor) -> torch.Tensor:
        trainer = SimpleNamespace(
            model=SimpleNamespace(training=True),
            accelerator=accelerator(),
            _metrics=metrics(),
            _tp_size=1,
            _total_train_tokens=0,
            aux_loss_enabled=False,
            precompute_ref_logps=True,
            calculate_KL=True,
            beta=0.3,
            loss_type="kto",
            desirable_weight=1.0,
            undesirable_weight=1.5,
            _compute_kl_logps=lambda model, batch: kl_logps_B,
        )
        inputs = {**answers_of_one_token(B), "label": labels_B, "ref_logps": drawn(3), "ref_KL_logps": ref_kl_logps_B}
        return KTOTrainer._compute_loss(trainer, lambda **_: head_outputs(logps_B), inputs, return_outputs=False)

    def ours(logps_B: torch.Tensor) -> torch.Tensor:
        kl = (kl_logps_B - ref_kl_logps_B).mean().clamp(min=0)
        assert kl > 0.5
        return losses.soft_kto(logps_B - drawn(3), labels_B.float(), kl, 0.3, 1.0, 1.5).mean()

    same_loss_and_gradient(ours, theirs, drawn(1))


# --- without a reference ------------------------------------------------------------------------------------------


def test_odds_ratio_is_orpo_trainer() -> None:
    from trl.experimental.orpo import ORPOTrainer

    def theirs(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        trainer = SimpleNamespace(beta=0.3, accelerator=accelerator())
        return -ORPOTrainer.odds_ratio_loss(trainer, chosen_B, rejected_B)[0].mean()

    def ours(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        return 0.3 * losses.soft_orpo(chosen_B, rejected_B, HARD_B).mean()

    same_loss_and_gradient(ours, theirs, -drawn(1, 1.0).abs() - 0.01, -drawn(2, 1.0).abs() - 0.01)


def test_simpo_is_cpo_trainer() -> None:
    from trl.experimental.cpo import CPOTrainer

    def theirs(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        trainer = SimpleNamespace(
            beta=2.0, simpo_gamma=0.7, loss_type="simpo", alpha=0.0, label_smoothing=0.0, accelerator=accelerator()
        )
        return CPOTrainer.cpo_loss(trainer, chosen_B, rejected_B)[0].mean()

    def ours(chosen_B: torch.Tensor, rejected_B: torch.Tensor) -> torch.Tensor:
        return losses.soft_simpo(chosen_B, rejected_B, HARD_B, 2.0, 0.7).mean()

    same_loss_and_gradient(ours, theirs, -drawn(1, 1.0).abs(), -drawn(2, 1.0).abs())
