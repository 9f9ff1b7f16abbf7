"""What cannot be trained is refused before anything is written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cai.config import DpoSection, RewardSection
from cai.errors import TrainError, UserError
from tests.tiny import make_model
from tests.training import SETTINGS, message, one_thread, planted_pairs, write

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")


def dpo(model: Path, tmp_path: Path, rows: list[dict[str, Any]], **changes: Any) -> Any:
    from cai.train import dpo

    settings = DpoSection.model_validate({**SETTINGS, "epochs": 1.0, **changes})
    return dpo.train(write(tmp_path / "pairs.jsonl", rows), str(model), tmp_path / "out", settings, device="cpu")


def test_pickled_weights_and_adapters_are_no_base(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match="found pytorch_model.bin, a pickle, which can run code"):
        dpo(model, tmp_path, planted_pairs(8))
    (model / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="found no weights"):
        dpo(model, tmp_path, planted_pairs(8))
    (model / "adapter_config.json").write_text("{}")
    with pytest.raises(UserError, match="found an adapter, expected a whole model"):
        dpo(model, tmp_path, planted_pairs(8))
    assert not (tmp_path / "out").exists()


def test_a_row_beyond_the_models_context_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    rows = [*planted_pairs(8), {**planted_pairs(1)[0], "prompt": message("a " * 300), "pair_id": "b2:long"}]
    with pytest.raises(UserError, match="row b2:long: 3.. tokens, but .* reads at most 256; set max_length to 256"):
        dpo(model, tmp_path, rows)
    assert dpo(model, tmp_path, rows, max_length=256).manifest["dropped"] == {"prompt too long": 1}


def test_pairs_that_are_all_ties_teach_nothing(tmp_path: Path) -> None:
    from cai.train import reward

    model = make_model(tmp_path / "model", pad=True)
    ties = [{**row, "p_chosen": 0.5, "p_tie": 1.0} for row in planted_pairs(8)]
    with pytest.raises(UserError, match="all 8 pairs are ties"):
        dpo(model, tmp_path, ties)
    settings = RewardSection.model_validate({**SETTINGS, "epochs": 1.0, "held_out": 0.0})
    with pytest.raises(UserError, match="all 8 pairs are ties"):
        reward.train(tmp_path / "pairs.jsonl", str(model), tmp_path / "rm", settings, device="cpu")


def test_robust_dpo_needs_a_share_of_flipped_labels() -> None:
    with pytest.raises(ValueError, match="set label_noise above 0"):
        DpoSection.model_validate({"loss": "robust"})


def test_four_bits_need_a_gpu(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    with pytest.raises(UserError, match="'nf4' needs a CUDA GPU"):
        dpo(model, tmp_path, planted_pairs(8), lora={"r": 4, "base": "nf4"})


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "robust", "label_noise": 0.1},
        {"label_noise": 0.1},
        {"loss": "kto"},
        {"loss": "orpo", "beta": 0.5},
        {"loss": "simpo", "beta": 2.0},
    ],
    ids=["robust", "conservative", "kto", "orpo", "simpo"],
)
def test_every_loss_of_the_family_learns_a_planted_preference(changes: dict[str, Any], tmp_path: Path) -> None:
    from tests.training import margins

    model = make_model(tmp_path / "model", pad=True)
    result = dpo(model, tmp_path, planted_pairs(96), **{"epochs": 4.0, **changes})
    held_out = margins(model, result.path, planted_pairs(40, seed=9))
    assert sum(m > 0 for m in held_out) >= 36 and result.manifest["loss_last"] < result.manifest["loss_first"]


def test_nan_in_a_reward_model_names_the_rows(tmp_path: Path) -> None:
    from cai.train import reward

    model = make_model(tmp_path / "model", pad=True)
    settings = RewardSection.model_validate({**SETTINGS, "learning_rate": 1e38, "epochs": 3.0, "warmup": 0.0})
    path = write(tmp_path / "pairs.jsonl", [{**row, "pair_id": f"row-{i}"} for i, row in enumerate(planted_pairs(8))])
    with pytest.raises(TrainError, match=r"the loss is (nan|inf) at step \d; the rows of this batch: row-"):
        reward.train(path, str(model), tmp_path / "out", settings, device="cpu", dtype="float32")


def test_shipped_training_and_data_files_are_read() -> None:
    from cai import yamlfile
    from cai.train.files import DataFile, TrainingFile

    configs = Path(__file__).resolve().parent.parent / "configs" / "train"
    assert yamlfile.load(configs / "data.yaml", DataFile).value.sources[0].format == "hh-rlhf"
    assert yamlfile.load(configs / "reward.yaml", TrainingFile).value.train.reward.heads == 1
