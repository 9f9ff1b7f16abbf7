"""PPO, GRPO and RLOO end to end on a tiny model: what they learn, and where they stop."""

from __future__ import annotations

import importlib
import inspect
import json
import sys
import threading
import types
from pathlib import Path
from typing import Any

import pytest

from cai import canon
from cai.config import GroupSection, PpoSection
from cai.errors import UserError
from tests.planted import CountsRed, best_under, mean_of, trees, write_prompts
from tests.tiny import make_model
from tests.training import curve, one_thread

__all__ = ["one_thread"]

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' libraries deprecate as they please

COMMON: dict[str, Any] = {
    "learning_rate": 0.01,
    "warmup": 0.0,
    "batch_size": 32,
    "micro_batch_size": 32,
    "max_new_tokens": 3,
    "epochs": 9999.0,
}
CONSTITUTION = """\
schema: 1
name: planted
description: For tests.
principles:
  - id: planted
    title: Planted
    revision: x
    check: {%s: ['\\bred\\b']}
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def constitution(folder: Path, rule: str) -> str:
    path = folder / "constitution.yaml"
    path.write_text(CONSTITUTION % rule)
    return str(path)


# --- the planted reward -------------------------------------------------------------------------------------------

BUDGET = 4.0
"""Nats per answer; an answer that is red throughout would cost about 12."""


@pytest.mark.parametrize("seed", range(5))
def test_ppo_reaches_nine_tenths_of_the_best_under_a_kl_budget(seed: int, tmp_path: Path) -> None:
    from cai.train import ppo

    base = make_model(tmp_path / "base", seed=seed)
    reference, red = trees(base)
    best, _ = best_under(reference, red, BUDGET)
    _, beta = best_under(reference, red, 0.93 * BUDGET)  # aims a little below, so as to end within
    settings = PpoSection.model_validate(
        {
            **COMMON,
            "max_steps": 60,
            "batch_size": 64,
            "micro_batch_size": 64,
            "minibatches": 2,
            "schedule": "linear",
            "lora": None,
            "kl": {"beta": beta},
            "lam": 1.0,
            "value_clip": 10.0,
            "value_weight": 0.5,
        }
    )
    rows = write_prompts(tmp_path / "prompts.jsonl")
    result = ppo.train(
        rows,
        str(base),
        tmp_path / "out",
        settings,
        seed=seed,
        device="cpu",
        dtype="float32",
        sources=[(CountsRed(), 1.0)],
    )
    trained, _ = trees(result.path)
    reward, kl = mean_of(trained, reference, red)
    assert reward >= 0.9 * best and kl <= BUDGET, (reward, best, kl)


def test_grpo_reaches_nine_tenths_of_the_best_under_a_kl_budget(tmp_path: Path) -> None:
    """Means over five seeds. TRL divides by the rewards' spread and its penalty pulls by another law than PPO's.

    So no formula gives the beta of a budget. It was found by trial, as a multiple of PPO's.
    """
    from cai.train import grpo

    rows = write_prompts(tmp_path / "prompts.jsonl")
    found = []
    for seed in range(5):
        base = make_model(tmp_path / f"base-{seed}", seed=seed)
        reference, red = trees(base)
        best, _ = best_under(reference, red, BUDGET)
        _, beta = best_under(reference, red, 0.93 * BUDGET)
        settings = GroupSection.model_validate(
            {
                **COMMON,
                "learning_rate": 0.02,
                "max_steps": 80,
                "batch_size": 64,
                "micro_batch_size": 64,
                "answers": 32,
                "schedule": "linear",
                "lora": None,
                "beta": 1.165 * beta,
            }
        )
        result = grpo.train(
            rows,
            str(base),
            tmp_path / f"out-{seed}",
            settings,
            seed=seed,
            device="cpu",
            dtype="float32",
            sources=[(CountsRed(), 1.0)],
        )
        trained, _ = trees(result.path)
        reward, kl = mean_of(trained, reference, red)
        found.append((reward / best, kl))
    share, kl = (sum(column) / len(found) for column in zip(*found, strict=True))
    assert share >= 0.9 and kl <= BUDGET, found


# --- what is told and kept ----------------------------------------------------------------------------------------


def test_a_curve_tells_everything_and_the_checkpoint_names_its_rewards(tiny: Path, tmp_path: Path) -> None:
    from cai.train import ppo

    rows = write_prompts(tmp_path / "prompts.jsonl")
    held_out = write_prompts(tmp_path / "held_out.jsonl", ["e", "f", "g"])
    settings = PpoSection.model_validate(
        {
            **COMMON,
            "max_steps": 3,
            "minibatches": 2,
            "micro_batch_size": 8,
            "lora": {"r": 4},
            "kl": {"beta": 0.1, "target": 2.0, "by_domain": {"paint": 0.5}},
            "entropy_weight": 0.01,
            "whiten_rewards": True,
            "critic": "separate",
            "reward": {"checks_weight": 2.0, "missing_end_penalty": 0.5},
            "watch": {"every": 2},
        }
    )
    rows.write_text(
        rows.read_text()
        + canon.dumps({"id": "x", "prompt": [{"role": "user", "content": "h"}], "domain": "paint"}).decode()
        + "\n"
    )
    spec = {"constitution": constitution(tmp_path, "must_match"), "held_out": str(held_out)}
    result = ppo.train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", spec=spec)
    lines = curve(tmp_path / "out")
    assert [row["step"] for row in lines] == [0, 1, 2, 3]
    told = {
        "loss",
        "reward",
        "reward_checks",
        "kl",
        "kl_per_token",
        "beta",
        "beta_paint",
        "entropy",
        "clip_fraction",
        "explained_variance",
        "length",
        "finished",
        "refusal",
        "boilerplate",
        "repetition",
        "tokens_per_s",
        "eta_s",
    }
    assert all(told <= row.keys() for row in lines[1:])
    assert lines[1]["kl"] == pytest.approx(0, abs=1e-3), "before the first update the policy is the reference"
    assert ["held_out_checks" in row for row in lines] == [True, False, True, True]
    assert lines[0]["held_out_sqrt_kl"] == pytest.approx(0, abs=0.05)
    manifest = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert manifest["kind"] == "adapter" and manifest["rewards"]["checks"].startswith("b2:") and not manifest["tripped"]
    left = {p.name for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"adapter_model.safetensors", "curve.jsonl"} <= left and not [n for n in left if n.endswith((".pt", ".bin"))]
    again = ppo.train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", spec=spec)
    assert again.reused and again.manifest == result.manifest
    (tmp_path / "constitution.yaml").write_text(CONSTITUTION % "must_not_match")
    with pytest.raises(UserError, match="other rewards"):
        ppo.train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", spec=spec)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_groups_learn_the_planted_reward_through_trl(method: str, tiny: Path, tmp_path: Path) -> None:
    train = importlib.import_module(f"cai.train.{method}").train
    settings = GroupSection.model_validate({**COMMON, "max_steps": 12, "answers": 8, "beta": 0.05, "lora": None})
    rows = write_prompts(tmp_path / "prompts.jsonl")
    train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", sources=[(CountsRed(), 1.0)])
    lines = curve(tmp_path / "out")
    assert [row["step"] for row in lines] == list(range(1, 13))
    assert lines[-1]["reward_red"] > lines[0]["reward_red"] + 0.5
    assert {"loss", "reward", "kl", "entropy", "clip_fraction", "length", "refusal", "tokens_per_s"} <= lines[-1].keys()


# --- tripwires ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_trip", ["rollback", "stop"])
def test_a_gamed_reward_stops_the_training(on_trip: str, tiny: Path, tmp_path: Path) -> None:
    """The reward counts `red`, which the constitution forbids: what is paid is the opposite of what is wanted."""
    from safetensors.torch import load_file

    from cai.train import ppo

    settings = PpoSection.model_validate(
        {
            **COMMON,
            "max_steps": 60,
            "lora": None,
            "kl": {"beta": 0.01},
            "watch": {"every": 2, "patience": 2, "judge_fall": 0.2, "on_trip": on_trip, "length_ratio": None},
        }
    )
    rows = write_prompts(tmp_path / "prompts.jsonl")
    held_out = write_prompts(tmp_path / "held_out.jsonl", list("abcdefghijklmnop"))
    spec = {"constitution": constitution(tmp_path, "must_not_match"), "held_out": str(held_out)}
    result = ppo.train(
        rows,
        str(tiny),
        tmp_path / "out",
        settings,
        device="cpu",
        dtype="float32",
        spec=spec,
        sources=[(CountsRed(), 1.0)],
    )
    trip = result.manifest["tripped"]
    assert trip["wire"] == "gaming" and result.manifest["steps"] < 60
    looks = [row for row in curve(tmp_path / "out") if "held_out_checks" in row]
    best = max(looks, key=lambda row: row["held_out_checks"])
    assert trip["kept_step"] == (best["step"] if on_trip == "rollback" else result.manifest["steps"])
    assert looks[-1]["held_out_reward"] > best["held_out_reward"]
    if on_trip == "rollback" and best["step"] == 0:
        ours, theirs = load_file(result.path / "model.safetensors"), load_file(tiny / "model.safetensors")
        assert all((ours[k] == theirs[k]).all() for k in theirs), "the weights are those of the untrained policy"


def test_a_reward_that_is_not_gamed_stops_nothing(tiny: Path, tmp_path: Path) -> None:
    from cai.train import ppo

    settings = PpoSection.model_validate(
        {
            **COMMON,
            "max_steps": 6,
            "lora": None,
            "kl": {"beta": 0.3},
            "watch": {"every": 2, "judge_fall": 0.2},
        }
    )
    rows = write_prompts(tmp_path / "prompts.jsonl")
    held_out = write_prompts(tmp_path / "held_out.jsonl", list("abcdefghijklmnop"))
    spec = {"constitution": constitution(tmp_path, "must_match"), "held_out": str(held_out)}
    result = ppo.train(
        rows,
        str(tiny),
        tmp_path / "out",
        settings,
        device="cpu",
        dtype="float32",
        spec=spec,
        sources=[(CountsRed(), 1.0)],
    )
    assert result.manifest["tripped"] is None and result.manifest["steps"] == 6


def test_a_figure_that_is_not_finite_is_never_trained_on(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai.errors import TrainError
    from cai.train import ppo

    class Breaks(CountsRed):
        n = 0

        def score(self, rollouts: Any) -> list[float | None]:
            self.n += 1
            return [float("nan") if self.n == 3 else value for value in super().score(rollouts)]

    rows = write_prompts(tmp_path / "prompts.jsonl")
    settings = PpoSection.model_validate({**COMMON, "max_steps": 6, "lora": None, "watch": None})
    with pytest.raises(TrainError, match="the loss is not finite at step 3; the prompts of this batch: .*lower"):
        ppo.train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", sources=[(Breaks(), 1.0)])
    assert not (tmp_path / "out" / "checkpoint.json").exists()


def test_what_a_server_reads_again_has_an_output_layer_of_its_own(tiny: Path, tmp_path: Path) -> None:
    """vLLM keeps the old output layer of a model that is told to share it with the embedding."""
    import torch
    from safetensors.torch import load_file
    from transformers import AutoConfig, AutoModelForCausalLM

    from cai.train.rollouts import InProcess

    tied = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tiny, tie_word_embeddings=True))
    InProcess(tied, frozenset()).save(tmp_path / "served")
    held = load_file(tmp_path / "served" / "model.safetensors")
    assert torch.equal(held["lm_head.weight"], held["model.embed_tokens.weight"])
    assert json.loads((tmp_path / "served" / "config.json").read_text())["tie_word_embeddings"] is False
    assert tied.config.tie_word_embeddings and tied.lm_head.weight is tied.model.embed_tokens.weight


# --- bad input ----------------------------------------------------------------------------------------------------


def test_prompts_that_cannot_be_used_are_named(tmp_path: Path, tiny: Path) -> None:
    from cai.train.data import Renderer, load_tokenizer
    from cai.train.rollouts import load_prompts, render

    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": []}\nno json\n{"prompt": [{"role": "assistant", "content": "x"}]}\n')
    with pytest.raises(UserError) as caught:
        load_prompts(path)
    assert [line.split(": ")[0] for line in str(caught.value).split("\n")] == [f"{path}:{n}" for n in (1, 2, 3)]
    path.write_text("\n")
    with pytest.raises(UserError, match="no prompts"):
        load_prompts(path)
    rows = load_prompts(write_prompts(path, ["a", "a " * 40]))
    renderer = Renderer(load_tokenizer(str(tiny)))
    kept, dropped = render(rows, renderer, 20)
    assert len(kept) == 1 and dropped == {"prompt too long": 1}
    with pytest.raises(UserError, match="all 2 prompts are longer than 3 tokens"):
        render(rows, renderer, 3)


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_what_cannot_be_sampled_from_is_refused_before_anything_is_written(method: str, tmp_path: Path) -> None:
    train = importlib.import_module(f"cai.train.{method}").train
    model = make_model(tmp_path / "model")
    section = PpoSection if method == "ppo" else GroupSection
    settings = section.model_validate({**COMMON, "max_steps": 1})
    rows = write_prompts(tmp_path / "prompts.jsonl", ["a", "a " * 250])
    told = {"device": "cpu", "dtype": "float32", "sources": [(CountsRed(), 1.0)]}
    with pytest.raises(UserError, match="prompt a a .* tokens and 3 to answer with, but .* reads at most 256"):
        train(rows, str(model), tmp_path / "out", settings, **told)
    assert not (tmp_path / "out" / "state").exists()
    (model / "model.safetensors").rename(model / "pytorch_model.bin")
    with pytest.raises(UserError, match="found pytorch_model.bin, a pickle"):
        train(rows, str(model), tmp_path / "pickle", settings, **told)
    assert not (tmp_path / "pickle").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import imports

    from cai.train.telemetry import Trackers

    monkeypatch.setattr(imports, "is_trackio_available", lambda: False)
    with pytest.raises(UserError, match=r"train\.track: 'trackio' is not installed"):
        Trackers(["trackio"], "run", tmp_path)


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_is_sent_every_figure_when_it_is_asked_for(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from accelerate.utils import imports

    from cai.train import run

    sent: list[Any] = []

    class Run:
        def log(self, values: dict[str, Any], step: int | None = None, **_: Any) -> None:
            sent.append((step, values))

        def finish(self) -> None:
            sent.append("finished")

    def trains(spec: dict[str, Any], on_step: Any, stop: Any) -> None:
        for step in (1, 2):
            on_step({"step": step, "loss": 1 / step, "note": "no figure"})

    monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(init=lambda project: sent.append(project) or Run()))
    monkeypatch.setattr(imports, f"is_{name}_available", lambda: True)
    monkeypatch.setattr(run, "_train", trains)
    file = tmp_path / "training.yaml"
    write_prompts(tmp_path / "rows.jsonl")
    file.write_text(f"method: sft\nbase: x\nrows: rows.jsonl\nout: {tmp_path}/mine\ntrain: {{track: [{name}]}}\n")
    run.train_with(run.read_spec(file), lambda row: None, threading.Event())
    assert sent == ["mine", (1, {"loss": 1.0}), (2, {"loss": 0.5}), "finished"]
    sent.clear()
    run.train_with(run.read_spec(file, ["train.track=[]"]), lambda row: None, threading.Event())
    assert not sent, "nothing is sent unless it was asked for"


def test_tensorboard_writes_every_figure_of_every_step_into_the_checkpoints_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch.utils
    from accelerate.utils import imports

    from cai.train.run import read_spec, train_with
    from tests.training import message, write

    written: dict[str, list[tuple[int, float]]] = {}

    class Writer:
        """As torch.utils.tensorboard.SummaryWriter."""

        def __init__(self, log_dir: str) -> None:
            self.folder = Path(log_dir)
            self.folder.mkdir(parents=True)

        def add_scalar(self, tag: str, scalar_value: float, global_step: int | None = None) -> None:
            assert isinstance(scalar_value, float | int) and global_step is not None
            written.setdefault(tag, []).append((global_step, scalar_value))

        def flush(self) -> None:
            (self.folder / "events.out").write_text("flushed")

        def close(self) -> None:
            (self.folder / "events.out").write_text("closed")

    monkeypatch.setattr(torch.utils, "tensorboard", types.SimpleNamespace(SummaryWriter=Writer), raising=False)
    monkeypatch.setattr(imports, "is_tensorboard_available", lambda: True)
    rows = [{"prompt": message(word), "completion": "red", "id": word} for word in "abcdefgh"]
    write(tmp_path / "rows.jsonl", rows)
    file = tmp_path / "training.yaml"
    file.write_text(
        f"method: sft\nbase: {make_model(tmp_path / 'base')}\nrows: rows.jsonl\nout: {tmp_path}/mine\n"
        "train: {track: [tensorboard], device: cpu, dtype: float32, "
        "sft: {batch_size: 4, micro_batch_size: 4, lora: null}}\n"
    )
    result = train_with(read_spec(file), lambda row: None, threading.Event())
    assert result.manifest["method"] == "sft"
    kept = curve(tmp_path / "mine")
    assert [row["step"] for row in kept] == [1, 2]
    for name in ("loss", "lr", "grad_norm", "tokens_per_s"):
        assert written[name] == [(row["step"], row[name]) for row in kept]
    assert (tmp_path / "mine" / "trackers" / "mine" / "events.out").read_text() == "closed"


@pytest.mark.parametrize("method", ["ppo", "grpo"])
def test_a_training_file_samples_too(method: str, tiny: Path, tmp_path: Path) -> None:
    from cai.train.run import spec_of, train_with

    (tmp_path / "prompts.jsonl").write_text('{"id": "1", "prompt": "a"}\n{"prompt": "b", "domain": "paint"}\n')
    constitution(tmp_path, "must_match")
    file = tmp_path / "training.yaml"
    own = "batch_size: 4, micro_batch_size: 4, max_steps: 1, max_new_tokens: 3, lora: {r: 2}"
    file.write_text(
        f"method: {method}\nbase: {tiny}\nrows: prompts.jsonl\nheld_out: prompts.jsonl\n"
        f"constitution: constitution.yaml\nout: {tmp_path}/out\n"
        f"train: {{device: cpu, dtype: float32, {method}: {{{own}}}}}\n"
    )
    result = train_with(spec_of(file), lambda row: None, threading.Event())
    assert result.manifest["method"] == method and set(result.manifest["rewards"]) == {"checks"}
    assert [row["step"] for row in curve(tmp_path / "out")] == [0, 1]
    text = file.read_text()
    file.write_text(text + "judge: {checkpoint: x}\n")
    with pytest.raises(UserError, match="a training file starts no judge"):
        spec_of(file)
    file.write_text(text + f'judge: {{base_url: ["http://127.0.0.1:1"], tokenizer: {tiny}}}\n')
    judge = spec_of(file)["judge"]
    assert judge["tokens"] == str(tiny) and judge["identity"] == "served at http://127.0.0.1:1"
    file.write_text(text.replace(f"method: {method}", "method: sft"))
    with pytest.raises(UserError, match="method 'sft' asks nobody; leave out constitution"):
        spec_of(file)


def test_the_methods_that_sample_are_called_alike() -> None:
    from cai.train import grpo, ppo, rloo

    parameters = [inspect.signature(method.train).parameters for method in (ppo, grpo, rloo)]
    kinds = [[(p.name, p.kind, p.default) for p in each.values()] for each in parameters]
    assert kinds[0] == kinds[1] == kinds[2]


@pytest.mark.parametrize("lora", [None, {"r": 4}])
def test_the_look_at_the_first_answers_is_their_forward_pass(lora: Any, tiny: Path, tmp_path: Path) -> None:
    """The same step by step, whether the forward pass that the old log-probabilities are of is made again or kept."""
    from cai.train import ppo

    def losses(out: str, changes: dict[str, Any]) -> list[tuple[float, float]]:
        told = {**COMMON, "max_steps": 3, "minibatches": 2, "micro_batch_size": 4, "lora": lora, "watch": None}
        settings = PpoSection.model_validate(told | {"entropy_weight": 0.01} | changes)
        source = [(CountsRed(), 1.0)]
        ppo.train(rows, str(tiny), tmp_path / out, settings, device="cpu", dtype="float32", sources=source)
        return [(row["loss"], row["grad_norm"]) for row in curve(tmp_path / out)]

    rows = write_prompts(tmp_path / "prompts.jsonl")
    kept = losses("kept", {})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ppo.Ppo, "_first", lambda self, step, rollouts: [])
        again = losses("again", {})
    assert len(kept) == 3 and kept == [pytest.approx(each, abs=1e-4) for each in again]
    assert losses("checkpointed", {"checkpointing": True}) == [pytest.approx(each, abs=1e-4) for each in again]


def test_a_training_learns_whatever_ended_badly_before_it(tiny: Path, tmp_path: Path) -> None:
    """accelerate keeps one state a process, in which a training that broke off may have left gradients unfinished."""
    from accelerate.state import GradientState

    from cai.train import ppo

    GradientState()._set_sync_gradients(False)
    settings = PpoSection.model_validate({**COMMON, "max_steps": 6, "lora": None, "watch": None})
    rows, source = write_prompts(tmp_path / "prompts.jsonl"), [(CountsRed(), 1.0)]
    ppo.train(rows, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32", sources=source)
    assert curve(tmp_path / "out")[-1]["kl"] > 1e-4, "the last answers are of a policy that has moved"


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_trls_loop_is_stopped_by_a_wire_and_rolled_back(method: str, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    watch = {"every": 1, "kl_ceiling": 1e-4, "length_ratio": None}
    told = {**COMMON, "learning_rate": 0.05, "max_steps": 8, "answers": 8, "lora": None, "watch": watch}
    rows = write_prompts(tmp_path / "prompts.jsonl")
    spec = {"constitution": constitution(tmp_path, "must_not_match"), "held_out": str(rows)}
    train = importlib.import_module(f"cai.train.{method}").train
    result = train(
        rows,
        str(tiny),
        tmp_path / "out",
        GroupSection.model_validate(told),
        device="cpu",
        dtype="float32",
        spec=spec,
        sources=[(CountsRed(), 1.0)],
    )
    trip = result.manifest["tripped"]
    assert trip["wire"] == "kl_ceiling" and result.manifest["steps"] == trip["step"] < 8
    looks = {row["step"]: row["held_out_checks"] for row in curve(tmp_path / "out") if "held_out_checks" in row}
    assert trip["kept_step"] == max(looks, key=lambda step: (looks[step], -step))
    ours, theirs = load_file(result.path / "model.safetensors"), load_file(tiny / "model.safetensors")
    same = all((ours[name] == theirs[name]).all() for name in theirs)
    assert same == (trip["kept_step"] == 0)


def test_a_curve_without_looks_goes_on_where_it_was(tiny: Path, tmp_path: Path) -> None:
    from cai.train import ppo
    from cai.train.job import Interrupted

    settings, stop = PpoSection.model_validate({**COMMON, "max_steps": 3}), threading.Event()
    rows = write_prompts(tmp_path / "prompts.jsonl")
    told: dict[str, Any] = {"device": "cpu", "dtype": "float32", "sources": [(CountsRed(), 1.0)], "stop": stop}
    stop.set()
    with pytest.raises(Interrupted, match="stopped at step 1 of 3"):
        ppo.train(rows, str(tiny), tmp_path / "out", settings, **told)
    stop.clear()
    ppo.train(rows, str(tiny), tmp_path / "out", settings, **told)
    assert [row["step"] for row in curve(tmp_path / "out")] == [1, 2, 3]
