"""Losses: numbers worked by hand, known special cases, and TRL's own trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cai.config import DpoSection
from cai.train import losses

numbers = st.floats(-8, 8)
shares = st.floats(0, 1)


def one(x: float) -> torch.Tensor:
    return torch.tensor([x], dtype=torch.float64)


def test_soft_bradley_terry_by_hand() -> None:
    # margin 1: -ln sigmoid(1) = ln(1 + e^-1) = 0.3132617, and ln(1 + e) = 1.3132617 for the other label.
    assert losses.soft_bradley_terry(one(2.5), one(1.5), one(1.0)).item() == pytest.approx(0.3132617)
    assert losses.soft_bradley_terry(one(2.5), one(1.5), one(0.0)).item() == pytest.approx(1.3132617)
    # 0.75 * 0.3132617 + 0.25 * 1.3132617
    assert losses.soft_bradley_terry(one(2.5), one(1.5), one(0.75)).item() == pytest.approx(0.5632617)
    assert losses.soft_bradley_terry(one(7.0), one(7.0), one(0.5)).item() == pytest.approx(math.log(2))


def test_soft_dpo_by_hand() -> None:
    # beta 0.1, log-ratios 2 and -1: margin 0.3, -ln sigmoid(0.3) = 0.5543552, -ln sigmoid(-0.3) = 0.8543552
    assert losses.soft_dpo(one(2.0), one(-1.0), one(1.0), 0.1).item() == pytest.approx(0.5543552)
    # conservative DPO with eps 0.1: 0.9 * 0.5543552 + 0.1 * 0.8543552
    assert losses.soft_dpo(one(2.0), one(-1.0), one(0.9), 0.1).item() == pytest.approx(0.5843552)


def test_soft_ipo_by_hand() -> None:
    # h = 0.5 - 0.25, target 1/(2 * 0.1) = 5: (0.25 - 5)^2 = 22.5625 and (0.25 + 5)^2 = 27.5625
    assert losses.soft_ipo(one(0.5), one(0.25), one(1.0), 0.1).item() == pytest.approx(22.5625)
    assert losses.soft_ipo(one(0.5), one(0.25), one(0.8), 0.1).item() == pytest.approx(23.5625)


def test_margin_by_hand() -> None:
    # gap 1, margin 0.5: -ln sigmoid(0.5) = 0.4740770 if chosen wins, -ln sigmoid(-1.5) = 1.7014133 if rejected does
    assert losses.soft_bradley_terry(one(2.5), one(1.5), one(1.0), 0.5).item() == pytest.approx(0.4740770)
    assert losses.soft_bradley_terry(one(2.5), one(1.5), one(0.0), 0.5).item() == pytest.approx(1.7014133)


def test_outcomes_by_hand() -> None:
    assert [q.item() for q in losses.outcomes(one(0.7), one(0.2))] == pytest.approx([0.6, 0.2, 0.2])
    assert [q.item() for q in losses.outcomes(one(0.95), one(0.4))] == pytest.approx([0.9, 0.1, 0.0])
    assert [q.item() for q in losses.outcomes(one(0.5), one(1.0))] == pytest.approx([0.0, 1.0, 0.0])


def test_rao_kupper_by_hand() -> None:
    # Equal rewards tie with 1/3: theta = 2, and each side wins with 1/(1 + 2) = 1/3 too.
    for p, tie in ((1.0, 0.0), (0.5, 1.0), (0.0, 0.0)):
        assert losses.rao_kupper(one(4.0), one(4.0), one(p), one(tie), 1 / 3).item() == pytest.approx(math.log(3))
    # rewards ln 3 and 0, theta 2: win 3/(3 + 2) = 0.6, lose 1/(1 + 6) = 1/7, tie (4 - 1) * 0.6 / 7 = 1.8/7
    args = one(math.log(3)), one(0.0)
    assert losses.rao_kupper(*args, one(1.0), one(0.0), 1 / 3).item() == pytest.approx(-math.log(0.6))
    assert losses.rao_kupper(*args, one(0.5), one(1.0), 1 / 3).item() == pytest.approx(-math.log(1.8 / 7))
    assert losses.rao_kupper(*args, one(0.0), one(0.0), 1 / 3).item() == pytest.approx(math.log(7))


def test_davidson_by_hand() -> None:
    # Equal rewards tie with 1/3: nu = 1. Rewards ln 4 and 0: outcomes go as 2, 1 and 1/2, so 4/7, 2/7 and 1/7.
    args = one(math.log(4)), one(0.0)
    for p, tie, share in ((1.0, 0.0, 4 / 7), (0.5, 1.0, 2 / 7), (0.0, 0.0, 1 / 7)):
        assert losses.davidson(*args, one(p), one(tie), 1 / 3).item() == pytest.approx(-math.log(share))
    assert losses.davidson(one(2.0), one(2.0), one(0.5), one(1.0), 0.4).item() == pytest.approx(-math.log(0.4))


@given(numbers, numbers, st.floats(0.02, 0.9))
def test_outcomes_of_tie_models_add_up_to_one(chosen: float, rejected: float, tie_at_equal: float) -> None:
    for model in (losses.rao_kupper, losses.davidson):
        parts = [model(one(chosen), one(rejected), one(p), one(t), tie_at_equal) for p, t in ((1, 0), (0.5, 1), (0, 0))]
        assert sum(math.exp(-part.item()) for part in parts) == pytest.approx(1)


@given(numbers, numbers, shares)
def test_tie_models_without_ties_are_bradley_terry(chosen: float, rejected: float, p: float) -> None:
    args = one(chosen), one(rejected), one(p)
    wanted = pytest.approx(losses.soft_bradley_terry(*args).item(), abs=1e-6)
    assert losses.rao_kupper(*args, one(0.0), 1e-9).item() == wanted
    assert losses.davidson(*args, one(0.0), 1e-9).item() == wanted


def test_centering_by_hand() -> None:
    assert losses.centering(one(2.0), one(-0.5)).item() == pytest.approx(2.25)


def test_conservative_and_robust_labels_by_hand() -> None:
    assert losses.smoothed(one(1.0), 0.1).item() == pytest.approx(0.9)
    assert losses.unbiased(one(1.0), 0.1).item() == pytest.approx(1.125)
    # rDPO with eps 0.1 at margin 0.3: (0.9 * 0.5543552 - 0.1 * 0.8543552) / 0.8
    robust = losses.soft_dpo(one(2.0), one(-1.0), losses.unbiased(one(1.0), 0.1), 0.1).item()
    assert robust == pytest.approx(0.5168552)


@given(shares, st.floats(0, 0.45))
def test_unbiased_undoes_smoothed(p: float, flip: float) -> None:
    assert losses.unbiased(losses.smoothed(one(p), flip), flip).item() == pytest.approx(p, abs=1e-9)


def test_kto_by_hand() -> None:
    # beta 0.5, r = 3, z = 1: sigmoid(1) = 0.7310586
    assert losses.soft_kto(one(3.0), one(1.0), 1.0, 0.5).item() == pytest.approx(0.2689414)
    assert losses.soft_kto(one(3.0), one(0.0), 1.0, 0.5, 1.0, 2.0).item() == pytest.approx(2 * 0.7310586)
    assert losses.soft_kto(one(3.0), one(0.75), 1.0, 0.5).item() == pytest.approx(0.75 * 0.2689414 + 0.25 * 0.7310586)


def test_orpo_by_hand() -> None:
    # P = 1/2 has odds 1, P = 1/5 odds 1/4: odds ratio 4, -ln(4/5)
    args = one(math.log(0.5)), one(math.log(0.2))
    assert losses.soft_orpo(*args, one(1.0)).item() == pytest.approx(-math.log(0.8))
    assert losses.soft_orpo(*args, one(0.25)).item() == pytest.approx(-0.25 * math.log(0.8) - 0.75 * math.log(0.2))
    certain = one(0.0).requires_grad_()
    losses.soft_orpo(certain, one(-1.0), one(1.0)).backward()
    assert certain.grad is not None and torch.isfinite(certain.grad).all()


def test_simpo_by_hand() -> None:
    # beta 2, gamma 0.5: 2 * (-0.5) - 2 * (-1) - 0.5 = 0.5
    assert losses.soft_simpo(one(-0.5), one(-1.0), one(1.0), 2.0, 0.5).item() == pytest.approx(0.4740770)


def test_nll_counts_only_marked_tokens() -> None:
    logps_BT = torch.tensor([[-1.0, -2.0, -9.0], [-3.0, -9.0, -9.0]])
    mask_BT = torch.tensor([[1, 1, 0], [1, 0, 0]])
    assert losses.nll_per_token(logps_BT, mask_BT).item() == pytest.approx(2.0)
    assert losses.nll_per_token(logps_BT, mask_BT, 12).item() == pytest.approx(0.5)
    assert losses.nll_per_token(logps_BT, torch.zeros(2, 3)).item() == 0.0


def test_k3_by_hand() -> None:
    # policy 1/2, reference 1/4: ratio 1/2, 0.5 - 1 + ln 2
    assert losses.k3_kl(one(math.log(0.5)), one(math.log(0.25))).item() == pytest.approx(0.1931472)
    assert losses.k3_kl(one(-1.0), one(-1.0)).item() == 0.0


@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=6), st.randoms(use_true_random=False))
def test_k3_is_the_kl_on_average_and_never_negative(weights: list[float], dice: Any) -> None:
    other = [dice.uniform(0.01, 1) for _ in weights]
    p, q = (torch.tensor(w, dtype=torch.float64) / sum(w) for w in (weights, other))
    estimates = losses.k3_kl(p.log(), q.log())
    assert estimates.min() >= -1e-12
    assert (p * estimates).sum().item() == pytest.approx((p * (p / q).log()).sum().item(), abs=1e-9)


@given(numbers, numbers, shares)
def test_swapping_the_arms_swaps_the_label(chosen: float, rejected: float, p: float) -> None:
    for loss in (losses.soft_bradley_terry, lambda a, b, p: losses.soft_ipo(a, b, p, 0.2)):
        assert loss(one(chosen), one(rejected), one(p)).item() == pytest.approx(
            loss(one(rejected), one(chosen), one(1 - p)).item()
        )


@given(st.floats(0.05, 0.95), st.floats(0.05, 1))
def test_soft_losses_are_lowest_where_the_policy_doubts_as_much_as_the_label(p: float, beta: float) -> None:
    margin = one(math.log(p / (1 - p)) / beta).requires_grad_()
    losses.soft_dpo(margin, one(0.0), one(p), beta).backward()
    assert margin.grad is not None and abs(margin.grad.item()) < 1e-9
    gap = one((2 * p - 1) / (2 * beta)).requires_grad_()
    losses.soft_ipo(gap, one(0.0), one(p), beta).backward()
    assert gap.grad is not None and abs(gap.grad.item()) < 1e-9


def pair_rows(n: int) -> list[dict[str, Any]]:
    from tests.tiny import WORDS

    def text(k: int, length: int) -> str:
        return " ".join(WORDS[(7 * k + 3 * i) % len(WORDS)] for i in range(length))

    return [
        {
            "prompt": [{"role": "user", "content": text(k, 3 + k % 5)}],
            "chosen": [{"role": "assistant", "content": text(k + 11, 2 + k % 7)}],
            "rejected": [{"role": "assistant", "content": text(k + 29, 9 - k % 4)}],
        }
        for k in range(n)
    ]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.tiny import make_model

    return make_model(tmp_path_factory.mktemp("tiny"))


# sft_weight adds TRL's own `sft` loss type, so it is compared too.
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "sigmoid"}, {"loss_type": ["sigmoid"]}),
        ({"loss": "ipo"}, {"loss_type": ["ipo"]}),
        ({"sft_weight": 0.5}, {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]}),
        ({"lora": {"r": 4}}, {"loss_type": ["sigmoid"]}),
    ],
    ids=["sigmoid", "ipo", "rpo", "lora"],
)
@pytest.mark.filterwarnings("ignore")
def test_hard_labels_give_trl_losses_step_by_step(
    ours: dict[str, Any], theirs: dict[str, Any], tiny: Path, tmp_path: Path
) -> None:
    """Six steps with a large learning rate: loss, tokens, masks, reference and gradient must all agree."""
    from cai import canon
    from cai.train import dpo

    settings = DpoSection.model_validate(
        {
            "learning_rate": 0.01,
            "epochs": 3.0,
            "batch_size": 4,
            "micro_batch_size": 2,
            "lora": None,
            "labels": "hard",
            "beta": 0.3,
            **ours,
        }
    )
    rows = pair_rows(8)
    (tmp_path / "pairs.jsonl").write_bytes(b"".join(canon.dumps(r) + b"\n" for r in rows))
    curve: list[float] = []
    dpo.train(
        tmp_path / "pairs.jsonl",
        str(tiny),
        tmp_path / "out",
        settings,
        seed=3,
        device="cpu",
        dtype="float32",
        on_step=lambda row: curve.append(row["loss"]) if row["step"] else None,
    )
    assert len(curve) == 6 and max(curve) - min(curve) > 0.01
    assert curve == pytest.approx(trl_losses(tiny, tmp_path / "trl", rows, settings, theirs), abs=1e-4)


def trl_losses(
    model: Path, out: Path, rows: list[dict[str, Any]], settings: DpoSection, loss: dict[str, Any]
) -> list[float]:
    """Return the losses of TRL's own trainer on the same rows in the same order."""
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer

    from cai.train.data import Renderer, load_tokenizer, tokenise, training_order
    from cai.train.rows import load_pairs
    from cai.train.trainer import lora_config

    class InOrder(DPOTrainer):
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    tokenizer = load_tokenizer(str(model))
    examples, _ = tokenise(load_pairs(out.parent / "pairs.jsonl"), Renderer(tokenizer), 1024)
    order = training_order([e.n_tokens for e in examples], settings.epochs, settings.micro_batch_size, 3)
    trainer = InOrder(
        model=AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32),
        args=DPOConfig(
            output_dir=str(out),
            beta=settings.beta,
            learning_rate=settings.learning_rate,
            max_steps=6,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            lr_scheduler_type="linear",
            warmup_steps=1,
            weight_decay=0.0,
            seed=3,
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            **loss,
        ),
        train_dataset=Dataset.from_list([rows[i] for i in order]),
        processing_class=tokenizer,
        peft_config=lora_config(settings),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
