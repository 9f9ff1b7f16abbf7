"""What cannot be trained is refused before anything is written."""

from __future__ import annotations

import json
import os
from pathlib import Path
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from cai.config import DpoSection, RewardSection
from cai.errors import TrainError, UserError
from tests import sharded
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
    with pytest.raises(TrainError, match=r"the loss is not finite at step \d; the rows of this batch: row-"):
        reward.train(path, str(model), tmp_path / "out", settings, device="cpu", dtype="float32")


def test_shipped_training_and_data_files_are_read() -> None:
    from cai import yamlfile
    from cai.evaluate.suite import Suite
    from cai.train.files import DataFile, TrainingFile
    from cai.train.run import spec_of

    configs = Path(__file__).resolve().parent.parent / "configs" / "train"
    data = yamlfile.load(configs / "data.yaml", DataFile).value
    assert data.sources[0].format == "hh-rlhf"
    measured = {
        p.path for suite in configs.parent.glob("suites/*.yaml") for p in yamlfile.load(suite, Suite).value.prompts
    }
    assert measured == {source.path for source in data.keep_out}, "no suite's prompts are trained on"
    assert yamlfile.load(configs / "reward.yaml", TrainingFile).value.train.reward.heads == 1
    spec = spec_of(configs / "ppo.yaml")
    assert spec["method"] == "ppo" and Path(spec["constitution"]).name == "quickstart.yaml" and spec["judge"] is None


@pytest.mark.parametrize("name", ["cpu", "ddp", "fsdp", "deepspeed-zero2"])
def test_accelerate_reads_every_config_that_ships(name: str) -> None:
    """With its own parser, and down to what each process is told, where every key must be one that it knows."""
    import torch
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    path = Path(__file__).resolve().parent.parent / "configs" / "accelerate" / f"{name}.yaml"
    told = load_config_from_file(str(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: name != "cpu")
        patch.setattr(torch.cuda, "device_count", lambda: 4)
        words = ["--config_file", str(path), "-m", "cai.train.run", "x.yaml"]
        parsed = launch_command_parser().parse_args(words)
        keys = {key for part in (told.fsdp_config, told.deepspeed_config) for key in part or {}}
        assert keys <= vars(parsed).keys(), "a key that accelerate does not know would be passed over in silence"
        arguments, *_ = _validate_launch_command(parsed)
        env = prepare_multi_gpu_env(arguments) if name in ("ddp", "fsdp") else {}
    assert told.num_processes == arguments.num_processes == (2 if name == "cpu" else 4)
    assert told.mixed_precision == arguments.mixed_precision == ("no" if name == "cpu" else "bf16")
    assert (arguments.use_fsdp, arguments.use_deepspeed) == (name == "fsdp", name == "deepspeed-zero2")
    if name == "fsdp":
        assert sharded.LAUNCHED["FSDP"].items() <= env.items()
    if name == "deepspeed-zero2":
        assert str(arguments.zero_stage) == sharded.LAUNCHED["DEEPSPEED"]["ACCELERATE_DEEPSPEED_ZERO_STAGE"]
        assert arguments.offload_optimizer_device == "none"


def test_a_step_takes_batch_size_rows_whatever_the_number_of_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import accelerate

    from cai.train.checkpoint import Folder
    from cai.train.job import Job
    from cai.train.trainer import arguments

    def taken(batch: int, micro: int, n: int) -> tuple[int, int]:
        settings = DpoSection.model_validate({"batch_size": batch, "micro_batch_size": micro})
        monkeypatch.setattr(accelerate, "PartialState", lambda cpu: SimpleNamespace(num_processes=n))
        folder = Folder(tmp_path, {})
        told = arguments(Job(folder, "", settings, [], [0] * batch, 0, "cpu", "float32", None, Event(), None))
        return told["per_device_train_batch_size"], told["gradient_accumulation_steps"]

    assert [taken(16, 8, n) for n in (1, 2, 4, 16)] == [(8, 2), (8, 1), (4, 1), (1, 1)]
    assert taken(24, 4, 4) == (3, 2), "six rows a process: three and three"
    for batch, n in ((8, 3), (2, 4)):
        with pytest.raises(UserError, match=f"{batch} rows a step cannot be shared by {n} processes"):
            taken(batch, 1, n)


def test_weights_that_cannot_be_put_together_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from cai.train.admit import settle_sharding, sharding

    for name, value in sharded.LAUNCHED["FSDP"].items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    settle_sharding("grpo", writes=True)
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "false", "or all processes but one train against zeros"
    monkeypatch.setenv("FSDP_VERSION", "1")
    settle_sharding("sft", writes=False)
    settle_sharding("ppo", writes=True)
    with pytest.raises(
        UserError, match="'grpo' writes answers .*, which FSDP1 cannot put together; set fsdp_version: 2"
    ):
        settle_sharding("grpo", writes=True)
    monkeypatch.setenv("FSDP_STATE_DICT_TYPE", "SHARDED_STATE_DICT")
    settle_sharding("ppo", writes=True)
    with pytest.raises(UserError, match="fsdp_state_dict_type: .* set it to FULL_STATE_DICT"):
        settle_sharding("sft", writes=False)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "false")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "2")
    settle_sharding("rloo", writes=True)
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")
    settle_sharding("sft", writes=False)
    with pytest.raises(UserError, match="'sft' with train.sft.watch writes .*, which ZeRO-3 leaves in parts; launch"):
        settle_sharding("sft", writes=True, why=" with train.sft.watch")
    settle_sharding("ppo", writes=True)
    assert sharding() == "FSDP"


def test_a_state_of_another_launch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cai.train.admit import check_resumed

    check_resumed(None, {"sharding": "FSDP"})
    check_resumed(tmp_path / "state" / "checkpoint-3", {})
    with pytest.raises(
        UserError, match="checkpoint-3: found a state .* under FSDP, expected one by whole models; launch"
    ):
        check_resumed(tmp_path / "state" / "checkpoint-3", {"sharding": "FSDP"})
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="by whole models, expected one under DEEPSPEED; launch as before, or remove"):
        check_resumed(tmp_path / "state" / "checkpoint-3", {"sharding": None})


def test_an_adapter_for_a_layer_that_is_not_there_or_takes_none_is_refused(tmp_path: Path) -> None:
    from cai.train.admit import check_targets

    def check(*targets: str) -> None:
        check_targets(DpoSection.model_validate({"lora": {"targets": targets}}), str(model))

    model = make_model(tmp_path / "model")
    check("q_proj", "self_attn.v_proj", "lm_head", "embed_tokens")
    with pytest.raises(UserError, match="has no layer 'v_porj'; its linear layers are down_proj, gate_proj, k_proj"):
        check("q_proj", "v_porj")
    with pytest.raises(UserError, match="'mlp' of .* is a LlamaMLP, which no adapter goes into; its linear layers are"):
        check("q_proj", "mlp")
    with pytest.raises(UserError, match="'0.self_attn' of .* is a LlamaAttention, which no adapter goes into"):
        check("0.self_attn")
    with pytest.raises(UserError, match="has no layer 'proj'"):
        dpo(model, tmp_path, planted_pairs(8), lora={"targets": ["proj"]})
    assert not (tmp_path / "out").exists()


def test_weights_that_were_cut_short_are_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(UserError, match="model.safetensors: not whole safetensors weights"):
        dpo(model, tmp_path, planted_pairs(8))
    weights.write_bytes(whole)
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match="model-00002-of-00002.safetensors is not here"):
        dpo(model, tmp_path, planted_pairs(8))
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_tokenizer_is_named(tmp_path: Path) -> None:
    model = make_model(tmp_path / "model")
    for path in model.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match="its tokenizer cannot be loaded"):
        dpo(model, tmp_path, planted_pairs(8))


def test_held_out_pairs_that_do_not_fit_are_told_before_the_training(tmp_path: Path) -> None:
    from cai.train import reward

    model = make_model(tmp_path / "model", pad=True)
    rows = write(tmp_path / "pairs.jsonl", planted_pairs(8))
    long = write(tmp_path / "long.jsonl", [{**planted_pairs(1)[0], "prompt": message("a " * 90)}])
    settings = RewardSection.model_validate({**SETTINGS, "epochs": 1.0, "max_length": 64})
    with pytest.raises(UserError, match="held_out, .*long.jsonl: all 1 rows are longer than 64 tokens"):
        reward.train(rows, str(model), tmp_path / "rm", settings, device="cpu", held_out=long)
    assert not (tmp_path / "rm" / "state").exists()


@pytest.mark.parametrize(("times", "expected"), [(0.7, "float32"), (1.3, "float32"), (4.0, "bfloat16")])
def test_bfloat16_is_for_a_cpu_that_is_clearly_faster_with_it(
    times: float, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from cai.train import job

    monkeypatch.setattr(job, "_product_s", lambda dtype: times if dtype is torch.float32 else 1.0)
    assert job.pick_dtype("auto", "cpu") == expected and job.pick_dtype("bfloat16", "cpu") == "bfloat16"


def test_flash_attention_is_taken_where_it_is_there_and_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    import transformers.utils

    from cai.config import PpoSection, SftSection
    from cai.train import trainer

    taken: list[Any] = []

    def load(base: str, **told: Any) -> Any:
        taken.append(told["attn_implementation"])
        return SimpleNamespace(config=SimpleNamespace())

    def attention(settings: Any, device: str = "cuda", dtype: str = "bfloat16") -> Any:
        job = SimpleNamespace(base="x", settings=settings, device=device, dtype=dtype, trust_remote_code=False)
        trainer.load_model(job)  # type: ignore
        return taken[-1]

    monkeypatch.setattr(trainer.AutoModelForCausalLM, "from_pretrained", load)
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: True)
    assert attention(SftSection()) == attention(PpoSection()) == "flash_attention_2"
    assert attention(DpoSection()) is None, "its pairs are hidden from each other by a mask"
    assert attention(SftSection(lora=None)) is None, "all weights are trained in float32"
    assert attention(SftSection(), device="cpu", dtype="float32") is None
    monkeypatch.setattr(transformers.utils, "is_flash_attn_2_available", lambda: False)
    assert attention(SftSection()) is None


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_bfloat16_and_checkpointing_train_as_float32_does(method: str, tmp_path: Path) -> None:
    """Both are what a GPU does, here on a CPU. The adapter stays in float32, or its small updates were lost."""
    import importlib

    import torch
    from safetensors.torch import load_file

    from cai.train.run import _SECTIONS
    from tests.training import curve

    model = make_model(tmp_path / "model", pad=True)
    rows: list[dict[str, Any]] = planted_pairs(16)
    if method == "sft":
        rows = [
            {"prompt": r["prompt"], "completion": r["chosen"][0]["content"], "id": str(i)} for i, r in enumerate(rows)
        ]
    path = write(tmp_path / "rows.jsonl", rows)

    def losses(dtype: str, **changes: Any) -> list[float]:
        told = {**SETTINGS, "epochs": 1.0, "learning_rate": 1e-3, **changes}
        if method == "reward":
            told["held_out"] = 0.0
        out = tmp_path / f"{dtype}-{len(changes)}"
        train = importlib.import_module(f"cai.train.{method}").train
        result = train(path, str(model), out, _SECTIONS[method].model_validate(told), device="cpu", dtype=dtype)
        weights = load_file(result.path / "adapter_model.safetensors")
        assert {weight.dtype for weight in weights.values()} == {torch.float32}
        return [row["loss"] for row in curve(out)]

    plain = losses("float32")
    assert len(plain) == 2 and losses("float32", checkpointing=True) == pytest.approx(plain, abs=1e-6)
    assert losses("bfloat16") == pytest.approx(plain, abs=0.02)


def test_an_adapter_over_four_bits_stays_in_float32(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from cai.train import dpo as module

    def as_if_quantized(job: Any) -> Any:
        made = load(job)
        made.is_loaded_in_4bit = True  # what TRL looks at before it rounds adapters
        return made

    load, seen = module.load_model, set[Any]()
    monkeypatch.setattr(module, "load_model", as_if_quantized)
    compute = module.CaiDPOTrainer._compute_loss

    def looks(self: Any, *args: Any) -> Any:
        seen.update(weight.dtype for weight in self.model.parameters() if weight.requires_grad)
        self.model.get_base_model().is_loaded_in_4bit = False  # whoever counts its weights would ask bitsandbytes
        return compute(self, *args)

    monkeypatch.setattr(module.CaiDPOTrainer, "_compute_loss", looks)
    dpo(make_model(tmp_path / "model", pad=True), tmp_path, planted_pairs(8))
    assert seen == {torch.float32}
