"""Trainings that are killed and stopped at random steps go on, and their curve is the undisturbed one."""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.forked import training
from tests.planted import write_prompts
from tests.tiny import make_model
from tests.training import curve, planted_pairs, write

N_KILLS = 10
COMMON = {"batch_size": 8, "micro_batch_size": 4, "lora": {"r": 8, "dropout": 0.1}, "save_steps": 3}
LEARNS = {"learning_rate": 0.003, "epochs": 8.0, "schedule": "cosine"}
SAMPLES = {
    "learning_rate": 0.01,
    "max_new_tokens": 3,
    "epochs": 256.0,
    "minibatches": 2,
    "schedule": "cosine",
    "rollouts": "in_process",
    "kl": {"beta": 0.1, "target": 2.0},
    "watch": {"every": 8, "kl_ceiling": None, "judge_fall": None},
}
CONSTITUTION = """\
schema: 1
name: planted
description: For tests.
principles: [{id: planted, title: Planted, revision: x, check: {must_match: ['\\bred\\b']}}]
"""


def spec_of(method: str, folder: Path) -> dict[str, Any]:
    """Return a training of 64 steps."""
    model = make_model(folder / "tiny", pad=True)
    pairs = planted_pairs(64)
    rows, settings, further = pairs, {**COMMON, **LEARNS}, {}
    if method == "sft":
        said = [row["chosen"][0]["content"] for row in pairs]
        rows = [
            {"prompt": row["prompt"], "completion": text, "id": text} for row, text in zip(pairs, said, strict=True)
        ]
    elif method == "reward":
        settings["held_out"] = 0.0
    path = write(folder / "rows.jsonl", rows)
    if method == "ppo":
        settings, path = {**COMMON, **SAMPLES}, write_prompts(folder / "rows.jsonl")
        (folder / "constitution.yaml").write_text(CONSTITUTION)
        further["constitution"] = str(folder / "constitution.yaml")
        further["held_out"] = str(write_prompts(folder / "held_out.jsonl", ["e", "f", "g"]))
    return {
        **{"method": method, "rows": str(path), "base": str(model), "seed": 4, "device": "cpu", "dtype": "float32"},
        **{"settings": settings, **further},
    }


@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "ppo"])
def test_ten_kills_leave_the_curve_and_the_weights_as_they_were(method: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    dice, ended = random.SystemRandom(), []
    specs = {out: tmp_path / f"{out}.json" for out in ("whole", "killed")}
    told = spec_of(method, tmp_path)
    for out, path in specs.items():
        path.write_text(json.dumps({**told, "out": str(tmp_path / out)}))
    for _ in range(N_KILLS):
        with training(specs["killed"], dies=(dice.randint(1, 5), dice.uniform(0, 0.08))) as process:
            ended.append(process.wait())
    assert ended == [-signal.SIGKILL] * N_KILLS, process.log.read_text()[-3000:]
    assert not (tmp_path / "killed" / "checkpoint.json").exists()
    for spec in specs.values():
        with training(spec) as process:
            assert process.wait() == 0, process.log.read_text()[-3000:]
    ours, theirs = curve(tmp_path / "killed"), curve(tmp_path / "whole")
    assert [row["step"] for row in ours if row["step"]] == list(range(1, 65))
    for name in ("loss", "kl", "reward", "entropy", "beta", "held_out_checks", "held_out_kl"):
        each, undisturbed = ({r["step"]: r[name] for r in rows if name in r} for rows in (ours, theirs))
        assert each == pytest.approx(undisturbed, abs=1e-4), name
    weights = [load_file(tmp_path / out / "adapter" / "adapter_model.safetensors") for out in ("killed", "whole")]
    assert max((weights[0][k] - weights[1][k]).abs().max().item() for k in weights[0]) < 1e-4


@pytest.mark.parametrize("method", ["dpo", "ppo"])
def test_a_stopped_training_goes_on_with_the_next_step(method: str, tmp_path: Path) -> None:
    spec = tmp_path / "spec.json"
    spec.write_text(json.dumps({**spec_of(method, tmp_path), "out": str(tmp_path / "out")}))
    asked = random.SystemRandom().randint(2, 9)
    with training(spec) as process:
        assert asked in process.steps(), process.log.read_text()
        process.send(signal.SIGTERM)
        assert process.wait() == 130, process.log.read_text()
    stopped = curve(tmp_path / "out")[-1]["step"]
    assert asked <= stopped < 64 and not (tmp_path / "out" / "checkpoint.json").exists()
    with training(spec) as process:
        assert next(process.steps()) == stopped + 1
