"""The reward model: TRL's losses on hard labels, what soft labels, ties, heads and weights change, exact resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.config import RewardSection
from cai.errors import UserError
from tests.tiny import make_model
from tests.training import SETTINGS, message, one_thread, planted_pairs, write

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"), pad=True)


def settings_of(**changes: Any) -> RewardSection:
    return RewardSection.model_validate({**SETTINGS, "learning_rate": 0.005, "held_out": 0.0, **changes})


def trl_losses(model: Path, out: Path, pairs: Path, settings: RewardSection) -> list[float]:
    """Return the losses of TRL's own trainer on the same token ids in the same order."""
    import torch
    from datasets import Dataset
    from torch.utils.data import SequentialSampler
    from transformers import AutoModelForSequenceClassification, set_seed
    from trl import RewardConfig, RewardTrainer

    from cai.train.data import Renderer, load_tokenizer, tokenise, training_order
    from cai.train.rows import load_pairs
    from cai.train.trainer import lora_config

    class InOrder(RewardTrainer):
        def _get_train_sampler(self, *args: Any) -> SequentialSampler:
            return SequentialSampler(self.train_dataset)

    tokenizer = load_tokenizer(str(model))
    examples, _ = tokenise(load_pairs(pairs), Renderer(tokenizer), 1024)
    order = training_order([e.n_tokens for e in examples], settings.epochs, settings.micro_batch_size, 3)
    rows = [
        {
            "chosen_ids": examples[i].prompt_ids + examples[i].completions[0],
            "rejected_ids": examples[i].prompt_ids + examples[i].completions[1],
            "margin": examples[i].margin,
        }
        for i in order
    ]
    set_seed(3)
    trainer = InOrder(
        model=AutoModelForSequenceClassification.from_pretrained(model, num_labels=1, dtype=torch.float32),
        args=RewardConfig(
            output_dir=str(out),
            learning_rate=settings.learning_rate,
            max_steps=6,
            per_device_train_batch_size=4,
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
            center_rewards_coefficient=settings.centering,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora_config(settings, task="SEQ_CLS"),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.mark.parametrize("lora", [None, {"r": 4}], ids=["full", "lora"])
def test_hard_labels_give_trl_losses_step_by_step(lora: Any, tiny: Path, tmp_path: Path) -> None:
    """Six steps with a large learning rate: loss, pooling, masks, margin, centering and gradient must all agree."""
    from cai.train import reward

    rows = [{**row, "margin": 0.1 * (i % 3)} for i, row in enumerate(planted_pairs(16))]
    pairs = write(tmp_path / "pairs.jsonl", rows)
    settings = settings_of(epochs=3.0, labels="hard", centering=0.05, lora=lora)
    curve: list[float] = []
    reward.train(
        pairs,
        str(tiny),
        tmp_path / "out",
        settings,
        seed=3,
        device="cpu",
        dtype="float32",
        on_step=lambda row: curve.append(row["loss"]),
    )
    assert len(curve) == 6 and max(curve) - min(curve) > 0.01
    assert curve == pytest.approx(trl_losses(tiny, tmp_path / "trl", pairs, settings), abs=1e-4)


# --- what it learns ---------------------------------------------------------------------------------------------------


def trained(tiny: Path, out: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    from cai.train import reward

    pairs = write(out.parent / f"{out.name}.jsonl", rows)
    reward.train(pairs, str(tiny), out, settings_of(**changes), seed=1, device="cpu", dtype="float32")
    return out


def scores_of(out: Path, rows: list[dict[str, Any]]) -> Any:
    """Return the scores of the chosen and of the rejected answers (N, 2, K), read from the checkpoint."""
    import torch

    from cai.train.scoring import RewardModel

    model = RewardModel.load(out)
    return torch.stack(
        [model.score([(r["prompt"], r[arm][0]["content"]) for r in rows]) for arm in ("chosen", "rejected")], 1
    )


@pytest.mark.parametrize("lora", [None, {"r": 8}], ids=["full", "lora"])
def test_a_planted_preference_is_learnt_and_the_checkpoint_scores_it(lora: Any, tiny: Path, tmp_path: Path) -> None:
    out = trained(tiny, tmp_path / "out", planted_pairs(96), epochs=4.0, lora=lora)
    found = scores_of(out, planted_pairs(40, seed=9))[:, :, 0]
    assert (found[:, 0] > found[:, 1]).float().mean() >= 0.95
    left = {p.relative_to(out).as_posix() for p in out.rglob("*") if p.is_file()}
    assert not [name for name in left if name.endswith((".bin", ".pt", ".pth", ".md"))]


def test_soft_labels_are_what_the_rewards_say(tiny: Path, tmp_path: Path) -> None:
    """One pair over and over, judged 0.7: the model ends at sigmoid(gap) = 0.7, and far above it with hard labels."""
    import torch

    rows = [{**planted_pairs(1)[0], "p_chosen": 0.7} for _ in range(16)]
    for labels, low, high in (("soft", 0.65, 0.75), ("hard", 0.9, 1.0)):
        out = trained(tiny, tmp_path / labels, rows, epochs=20.0, labels=labels, lora=None)
        gap = scores_of(out, rows[:1])[0]
        assert low < torch.sigmoid(gap[0] - gap[1]).item() < high, labels


@pytest.mark.parametrize("ties", ["rao-kupper", "davidson"])
def test_pairs_judged_ties_end_with_equal_rewards(ties: str, tiny: Path, tmp_path: Path) -> None:
    rows = [{**row, "p_chosen": 0.5, "p_tie": 1.0} for row in planted_pairs(16)]
    out = trained(tiny, tmp_path / "out", rows, epochs=20.0, ties=ties, lora=None)
    found = scores_of(out, rows)[:, :, 0]
    assert (found[:, 0] - found[:, 1]).abs().max() < 0.1


def test_rows_of_no_weight_teach_nothing(tiny: Path, tmp_path: Path) -> None:
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"], "weight": 0.0} for row in planted_pairs(64)]
    out = trained(tiny, tmp_path / "out", [*planted_pairs(64), *turned], epochs=4.0)
    found = scores_of(out, planted_pairs(40, seed=9))[:, :, 0]
    assert (found[:, 0] > found[:, 1]).float().mean() >= 0.95
    with pytest.raises(UserError, match="every row has weight 0"):
        trained(tiny, tmp_path / "none", turned)


def test_heads_of_an_ensemble_see_different_rows(tiny: Path, tmp_path: Path) -> None:
    from cai.train.reward import targets
    from cai.train.scoring import Ensemble

    out = trained(tiny, tmp_path / "out", planted_pairs(96), epochs=4.0, heads=4)
    found = scores_of(out, planted_pairs(40, seed=9))
    assert found.shape == (40, 2, 4) and (found[:, 0] > found[:, 1]).float().mean() > 0.9
    assert found[:, 0].std(1).min() > 0
    from cai.train.data import Example

    _, weights = targets([Example("r", [1], [[1], [2]])] * 400, [], 4, seed=0)
    assert weights.mean().item() == pytest.approx(1, abs=0.1) and (weights == 0).float().mean() > 0.3
    asked = [(row["prompt"], row["chosen"][0]["content"]) for row in planted_pairs(8, seed=9)]
    both = Ensemble.load([out, out])
    mean, members = both.score(asked)
    assert members.shape == (8, 8) and mean.tolist() == pytest.approx(members.mean(1).tolist())


def test_combining_members_by_hand() -> None:
    import torch

    from cai.train.scoring import combined, weighed

    members = torch.tensor([[1.0, 3.0], [2.0, 2.0]])
    assert combined(members, "mean").tolist() == [2.0, 2.0]
    assert combined(members, "worst").tolist() == [1.0, 2.0]
    assert combined(members, "cautious", 0.5).tolist() == [1.5, 2.0]  # variances 1 and 0
    assert weighed(members, ["brief", "kind"], {"kind": 3.0}).tolist() == [2.5, 2.0]
    with pytest.raises(UserError, match="no head for principle 'bold'; this reward model has brief, kind"):
        weighed(members, ["brief", "kind"], {"bold": 1.0})
    with pytest.raises(UserError, match="not all 0"):
        weighed(members, ["brief", "kind"], {"brief": 0.0, "kind": 0.0})


def test_each_principle_has_a_head_that_learns_its_own_votes(tiny: Path, tmp_path: Path) -> None:
    """`warm` likes red and `cold` likes blue; half of the rows say nothing about `cold`."""
    rows = [
        {**row, "votes": {"warm": 0.95, **({"cold": 0.05} if i % 2 else {})}} for i, row in enumerate(planted_pairs(96))
    ]
    out = trained(tiny, tmp_path / "out", rows, epochs=6.0, heads="principles")
    said = json.loads((out / "checkpoint.json").read_text())["reward"]
    assert said["principles"] == ["cold", "warm"] and said["heads"] == 2
    found = scores_of(out, planted_pairs(40, seed=9))
    right = (found[:, 0] > found[:, 1]).float().mean(0)
    assert right[0] < 0.1 and right[1] > 0.9
    with pytest.raises(UserError, match="'principles' needs votes per principle"):
        trained(tiny, tmp_path / "none", planted_pairs(8), heads="principles")


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_a_reward_model_is_refused_without_its_own_base_or_weights(tiny: Path, tmp_path: Path) -> None:
    from cai.errors import TrainError
    from cai.train.scoring import RewardModel

    base = make_model(tmp_path / "base", pad=True)
    out = trained(base, tmp_path / "out", planted_pairs(16), epochs=1.0)
    make_model(base, pad=True, seed=5)
    with pytest.raises(UserError, match="trained on a base with id b2:"):
        RewardModel.load(out)
    make_model(base, pad=True)
    weights = out / "adapter" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    with pytest.raises(TrainError, match="the checkpoint is damaged"):
        RewardModel.load(out)
    weights.write_bytes(whole)
    assert RewardModel.load(out).n_heads == 1
    with pytest.raises(UserError, match="no finished training here"):
        RewardModel.load(tmp_path)
    with pytest.raises(UserError, match="row 1: .* tokens, but the reward model reads at most 256"):
        RewardModel.load(out).score([(message("a " * 400), "b")])


def test_the_saved_adapter_is_one_that_transformers_reads(tiny: Path, tmp_path: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    out = trained(tiny, tmp_path / "out", planted_pairs(32))
    row = planted_pairs(1, seed=4)[0]
    ours = scores_of(out, [row])[0, 0, 0].item()
    base = AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=1, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, out / "adapter")
    tokenizer = AutoTokenizer.from_pretrained(tiny)
    model.config.pad_token_id = tokenizer.pad_token_id
    ids = tokenizer.apply_chat_template([*row["prompt"], *row["chosen"]], return_tensors="pt", return_dict=True)
    assert model(**ids).logits.item() == pytest.approx(ours, abs=1e-5)


@pytest.mark.parametrize("pad", [True, False])
def test_a_merged_reward_model_judges_as_it_was_trained(
    pad: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import asyncio

    from cai.cli import main
    from cai.engine.model import Reward
    from cai.engine.reward import RewardModel
    from cai.templates import Turn

    row = planted_pairs(1, seed=4)[0]
    out = trained(make_model(tmp_path / "base", pad=pad), tmp_path / "out", planted_pairs(16), epochs=1.0)
    said = [row["chosen"][0]["content"], row["rejected"][0]["content"]]
    ours = scores_of(out, [row])[0, :, 0].tolist()
    assert main(["reward", "merge", str(out), "--json"]) == 0
    model = RewardModel.load(json.loads(capsys.readouterr().out)["path"], identity="rm")

    async def ask() -> list[float | None]:
        turns = (Turn("user", row["prompt"][0]["content"]),)
        replies = await asyncio.gather(*(model.reward(Reward(turns, text)) for text in said))
        await model.close()
        return [reply.reward for reply in replies]

    assert asyncio.run(ask()) == pytest.approx(ours, abs=1e-5)
    assert main(["reward", "merge", str(out)]) == 2, "what is there is not written over"


def test_a_share_of_the_prompts_is_held_out_by_itself(tiny: Path, tmp_path: Path) -> None:
    from cai.evaluate.rewards import quality, read

    out = trained(tiny, tmp_path / "out", planted_pairs(200), epochs=3.0, held_out=0.2)
    said = json.loads((out / "checkpoint.json").read_text())
    assert said["n_rows"] + said["n_held_out"] == 200 and 20 < said["n_held_out"] < 60
    parts = read(out / "held_out.jsonl")
    assert quality(parts["held_out"]).n == said["n_held_out"] == len(parts["train"])
    assert quality(parts["held_out"]).accuracy > 0.9


def test_held_out_pairs_are_scored_and_the_report_agrees(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cai.cli import main

    rows, held_out = tmp_path / "rows.jsonl", tmp_path / "held.jsonl"
    write(rows, planted_pairs(96))
    write(held_out, planted_pairs(40, seed=9))
    spec = tmp_path / "reward.yaml"
    spec.write_text(
        f"method: reward\nbase: {tiny}\nrows: rows.jsonl\nheld_out: held.jsonl\nout: {tmp_path / 'rm'}\n"
        "train:\n  device: cpu\n  reward: {learning_rate: 0.005, epochs: 4, lora: {r: 8}}\n"
    )
    assert main(["train", str(spec), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["reused"] is False
    assert main(["reward", "report", str(tmp_path / "rm"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = scores_of(tmp_path / "rm", planted_pairs(40, seed=9))[:, :, 0]
    assert said["n"] == 40 and said["accuracy"] == pytest.approx((found[:, 0] > found[:, 1]).float().mean().item())
    assert said["interval"][0] <= said["accuracy"] <= said["interval"][1]
    assert (tmp_path / "rm" / "reliability.svg").read_text().startswith("<svg")
    assert main(["reward", "score", str(held_out), "-m", str(tmp_path / "rm"), "--json"]) == 0
    scored = json.loads(capsys.readouterr().out)
    assert scored[3]["rewards"] == pytest.approx(found[3].tolist(), abs=1e-5)
    assert main(["reward", "score", str(held_out), "-m", str(tmp_path / "rm"), "-o", str(tmp_path / "s.jsonl")]) == 0
    first = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])
    assert first["rewards"] == pytest.approx(found[0].tolist(), abs=1e-5) and first["chosen"]
    assert main(["train", str(spec), "--show", "0"]) == 2
    assert main(["train", str(spec), "--show", "1"]) == 0
    assert "⟦<end>⟧" in capsys.readouterr().out
    assert main(["train", str(spec), "method=dpo", "held_out=null", "--show", "1"]) == 0
    shown = capsys.readouterr().out
    assert "chosen (p = 0.95): ⟦" in shown and "<start> assistant" in shown.split("⟦")[0]
