"""Tripwires in trainings that the loop of `transformers` drives: SFT, DPO, GRPO and RLOO, on a tiny model."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any

import pytest

from cai.config import DpoSection, GroupSection, SftSection, TrainerSection
from cai.errors import TrainError, UserError
from tests.planted import CountsRed, write_prompts
from tests.tiny import make_model
from tests.training import SETTINGS, curve, one_thread, planted_pairs, write

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")

CONSTITUTION = """\
schema: 1
name: planted
description: For tests.
principles: [{id: planted, title: Planted, revision: x, check: {must_not_match: ['\\bred\\b']}}]
"""
WATCH = {"every": 2, "judge_fall": 0.2, "length_ratio": None, "repetition_rise": None, "max_new_tokens": 4}
SECTIONS: dict[str, type[TrainerSection]] = {"sft": SftSection, "dpo": DpoSection}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def looking(folder: Path, prompts: str = "abcdefghijklmnop") -> dict[str, str]:
    """Return the spec of looks at sixteen prompts, or others; whoever says `red` breaks the only principle."""
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    held_out = write_prompts(folder / "held_out.jsonl", list(prompts))
    return {"constitution": str(folder / "constitution.yaml"), "held_out": str(held_out)}


def rows_of(method: str, folder: Path) -> Path:
    pairs = planted_pairs(96)
    if method == "sft":
        pairs = [{"prompt": row["prompt"], "completion": "red", "id": f"row-{i}"} for i, row in enumerate(pairs)]
    return write(folder / "rows.jsonl", pairs)


def trained(method: str, model: Path, folder: Path, **changes: Any) -> Any:
    """Train towards `red` on a tiny model, or go on with it."""
    stop, on_step = changes.pop("stop", None), changes.pop("on_step", None)
    watch, spec = {**WATCH, **changes.pop("watch", {})}, looking(folder, changes.pop("held_out", "abcdefghijklmnop"))
    settings = SECTIONS[method].model_validate({**SETTINGS, "warmup": 0.0, **changes, "watch": watch})
    train = importlib.import_module(f"cai.train.{method}").train
    told = {"device": "cpu", "dtype": "float32", "spec": spec, "stop": stop, "on_step": on_step, "seed": 1}
    return train(rows_of(method, folder), str(model), folder / "out", settings, **told)


@pytest.mark.parametrize("method", ["sft", "dpo"])
@pytest.mark.parametrize("on_trip", ["rollback", "stop"])
def test_a_training_that_the_checks_like_less_is_stopped(method: str, on_trip: str, tiny: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    watch = {"on_trip": on_trip, "patience": 1}
    result = trained(method, tiny, tmp_path, lora=None, learning_rate=0.005, watch=watch)
    trip, lines = result.manifest["tripped"], curve(tmp_path / "out")
    assert trip["wire"] == "judge_fall" and "the judge's score fell from" in trip["sentence"]
    assert result.manifest["steps"] == lines[-1]["step"] == trip["step"] < 24
    looks = [row for row in lines if "held_out_checks" in row]
    assert [row["step"] for row in looks] == list(range(0, trip["step"] + 1, 2))
    assert looks[0]["held_out_kl"] == pytest.approx(0, abs=1e-3) and looks[-1]["held_out_sqrt_kl"] > 0.1
    best = max(looks, key=lambda row: row["held_out_checks"])
    assert trip["kept_step"] == (best["step"] if on_trip == "rollback" else trip["step"])
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (result.path, tiny))
    moved = any((ours[name] != weight).any() for name, weight in theirs.items())
    assert moved == (trip["kept_step"] > 0)


def test_nan_ends_with_the_best_weights_where_somebody_has_judged_them(tiny: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    result = trained("sft", tiny, tmp_path, learning_rate=1e38, watch={"every": 1, "judge_fall": None})
    assert result.manifest["tripped"]["wire"] == "not_finite" and result.manifest["tripped"]["kept_step"] == 0
    weights = load_file(result.path / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_a_gradient_that_is_not_finite_is_never_stepped_with(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Trainer

    from cai.train import sft

    monkeypatch.setattr(Trainer, "_clip_grad_norm", lambda self, model: float("inf"))
    settings = SftSection.model_validate({**SETTINGS, "epochs": 1.0})
    with pytest.raises(TrainError, match="the gradient is not finite at step 1; the rows of this step: row-"):
        sft.train(rows_of("sft", tmp_path), str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32")
    assert not (tmp_path / "out" / "checkpoint.json").exists()


def test_a_watched_training_that_is_stopped_goes_on_as_if_it_had_not_been(tiny: Path, tmp_path: Path) -> None:
    from cai.train.job import Interrupted

    calm = {"judge_fall": None, "kl_ceiling": None, "entropy_share": None, "every": 3}
    for name in ("whole", "halted"):
        (tmp_path / name).mkdir()
    trained("dpo", tiny, tmp_path / "whole", watch=calm, max_steps=8)
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        trained("dpo", tiny, tmp_path / "halted", watch=calm, max_steps=8, stop=stop)
    trained("dpo", tiny, tmp_path / "halted", watch=calm, max_steps=8)
    for name in ("loss", "held_out_checks", "held_out_kl", "held_out_entropy"):
        ours, theirs = (
            {row["step"]: row[name] for row in curve(tmp_path / where / "out") if name in row}
            for where in ("halted", "whole")
        )
        assert ours == pytest.approx(theirs, abs=1e-4) and ours, name


@pytest.mark.parametrize("watched", [True, False])
def test_groups_never_learn_from_nan(watched: bool, tiny: Path, tmp_path: Path) -> None:
    from cai.train import grpo

    class Breaks(CountsRed):
        n = 0

        def score(self, rollouts: Any) -> list[float | None]:
            self.n += 1
            return [float("nan") if self.n == 3 else value for value in super().score(rollouts)]

    settings = {**SETTINGS, "max_new_tokens": 3, "answers": 4, "max_steps": 6, "epochs": 99.0, "warmup": 0.0}
    section = GroupSection.model_validate({**settings, "watch": {**WATCH, "judge_fall": None} if watched else None})
    told: dict[str, Any] = {"device": "cpu", "dtype": "float32", "sources": [(Breaks(), 1.0)]}
    told["spec"] = looking(tmp_path)
    rows = write_prompts(tmp_path / "prompts.jsonl")
    if watched:  # the first look scores too
        trip = grpo.train(rows, str(tiny), tmp_path / "out", section, **told).manifest["tripped"]
        assert trip["wire"] == "not_finite" and trip["step"] == 2 and trip["kept_step"] == 0
    else:
        with pytest.raises(TrainError, match="a reward is not finite at step 3; the prompts of this batch: [ab]"):
            grpo.train(rows, str(tiny), tmp_path / "out", section, **told)
        assert not (tmp_path / "out" / "checkpoint.json").exists()


def test_a_training_file_that_watches_names_prompts_and_may_ask_a_judge(tiny: Path, tmp_path: Path) -> None:
    from cai.train.run import spec_of, train_with

    looking(tmp_path), rows_of("dpo", tmp_path)
    file = tmp_path / "training.yaml"
    text = f"method: dpo\nbase: {tiny}\nrows: rows.jsonl\nout: {tmp_path}/out\nconstitution: constitution.yaml\n"
    file.write_text(text)
    with pytest.raises(UserError, match="'dpo' asks nobody; leave out constitution, or set train.dpo.watch"):
        spec_of(file)
    text += "train: {device: cpu, dtype: float32, dpo: {max_steps: 1, watch: {max_new_tokens: 3}}}\n"
    file.write_text(text)
    with pytest.raises(UserError, match="train.dpo.watch looks at answers to prompts; name a file of them in held_out"):
        spec_of(file)
    file.write_text(text + "held_out: held_out.jsonl\n")
    result = train_with(spec_of(file), lambda row: None, threading.Event())
    assert set(result.manifest["referees"]) == {"checks"}
    assert ["held_out_checks" in row for row in curve(tmp_path / "out")] == [True, True]


# --- groups that are cut short ------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_groups_that_are_cut_short_go_on_from_their_last_state_as_if_nothing_had_been(
    method: str, tiny: Path, tmp_path: Path
) -> None:
    """In mid-step, three steps behind a sealed state; dropout, looks and counts of failures included."""
    from safetensors.torch import load_file

    train = importlib.import_module(f"cai.train.{method}").train

    class Cut(BaseException):
        pass

    class Fails(CountsRed):
        def score(self, rollouts: Any) -> list[float | None]:
            found = super().score(rollouts)
            return [None if "cat" in each.text else value for each, value in zip(rollouts, found, strict=True)]

    def cut(row: dict[str, Any]) -> None:
        if row["step"] == 6:
            raise Cut

    changes = {
        "max_new_tokens": 3,
        "answers": 4,
        "max_steps": 9,
        "epochs": 99.0,
        "save_steps": 4,
        "learning_rate": 0.01,
    }
    watch = {**WATCH, "judge_fall": None, "kl_ceiling": None, "entropy_share": None, "every": 4}
    section = GroupSection.model_validate({**SETTINGS, **changes, "lora": {"r": 8, "dropout": 0.1}, "watch": watch})
    rows, spec = write_prompts(tmp_path / "prompts.jsonl", list("abcdefg")), looking(tmp_path)

    def run(name: str, on_step: Any = None) -> Any:
        told = {"device": "cpu", "dtype": "float32", "sources": [(Fails(), 1.0)], "spec": spec, "on_step": on_step}
        return train(rows, str(tiny), tmp_path / name, section, **told)

    whole = run("whole")
    with pytest.raises(Cut):
        run("cut", cut)
    steps: list[int] = []
    went_on = run("cut", lambda row: steps.append(row["step"]))
    assert steps == [5, 6, 7, 8, 9]
    assert went_on.manifest["unscored"] == whole.manifest["unscored"] > 0
    for name in ("loss", "reward_red", "kl", "entropy", "held_out_reward", "held_out_kl"):
        ours, theirs = (
            {row["step"]: row[name] for row in curve(tmp_path / where) if name in row} for where in ("cut", "whole")
        )
        assert ours == pytest.approx(theirs, abs=1e-4) and ours, name
    weights = [load_file(result.path / "adapter_model.safetensors") for result in (went_on, whole)]
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < 1e-4
