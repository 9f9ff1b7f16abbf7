"""A phase that trains PPO in a whole run: the scripted server judges, a tiny model learns."""

from __future__ import annotations

import json
import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cai.trail import RunView
from tests import runs
from tests.tiny import make_model

TRAINER: dict[str, Any] = {
    "learning_rate": 1e-3, "max_steps": 4, "epochs": 9.0, "batch_size": 8, "micro_batch_size": 4, "max_length": 256,
    "max_new_tokens": 8, "lora": {"r": 4}, "reward": {"judge_weight": 1.0, "checks_weight": 0.5},
    "watch": {"every": 2, "prompts": 4},
}  # fmt: skip


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("ppo")
    runs.write_inputs(folder, n_prompts=20)
    tree = runs.config(folder)
    tree["models"]["policy"]["checkpoint"] = str(make_model(folder / "base"))
    tree["prompts"]["held_out"] = 0.4
    tree["phases"] = [{"name": "rl", "train": "ppo"}]
    tree["train"] = {"ppo": TRAINER, "device": "auto", "dtype": "float32"}
    tree["evaluate"] = {"samples": 1}
    with pytest.MonkeyPatch.context() as patch:  # a machine that looks as if it had one GPU
        (folder / "nvidia-smi").write_text("#!/bin/sh\n")
        (folder / "nvidia-smi").chmod(0o755)
        patch.setenv("PATH", str(folder), prepend=os.pathsep)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        return runs.run_json(runs.write_config(folder, tree))


def test_the_judge_and_the_checks_reward_and_watch(said: dict) -> None:
    out = Path(said["run"]) / "checkpoints" / "rl"
    rows = [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(-1 <= row["reward_judge"] <= 1 and 0 <= row["reward_checks"] <= 1 for row in rows[1:])
    assert rows[1]["reward"] == pytest.approx(rows[1]["reward_judge"] + 0.5 * rows[1]["reward_checks"])
    assert ["held_out_judge" in row for row in rows] == [True, False, True, False, True]
    manifest = json.loads((out / "checkpoint.json").read_text())
    assert manifest["method"] == "ppo" and set(manifest["rewards"]) == {"judge", "checks"}
    assert (out / "model" / "model.safetensors").exists(), "the adapter is merged, to be served"


def test_a_judge_on_the_trainers_gpu_sleeps_until_it_is_asked(said: dict) -> None:
    """The scripted server answers nothing while it sleeps, so the rewards of the other tests show that it was woken."""
    spec = json.loads((Path(said["run"]) / "checkpoints" / "rl.spec.json").read_text())
    assert spec["judge"]["sleeps"] is True
    manifest = RunView(said["run"]).manifest
    starts = [stage for stage in manifest["sessions"][-1]["timings"] if stage["stage"].startswith("start server")]
    assert len(starts) >= 3, "stopped before the training, started for it, stopped and started again after it"


def test_every_call_to_the_judge_while_training_is_kept(said: dict) -> None:
    with closing(sqlite3.connect(Path(said["run"]) / "checkpoints" / "rl" / "judged.sqlite")) as kept:
        kinds = dict(kept.execute("SELECT kind, count(*) FROM calls GROUP BY kind"))
        texts = [text for (text,) in kept.execute("SELECT text FROM texts")]
    assert set(kinds) == {"score"} and kinds["score"] > 4 * 8
    assert any(text.startswith("Principle") and "Which answer is kinder?" in text for text in texts)


def test_the_checkpoint_is_not_stale_and_the_report_draws_its_curves(said: dict) -> None:
    assert said["by_kind"]["made"]["generate"] == 2 * said["prompts"]["held_out"], "no training prompt was walked"
    assert said["stale"] == [] and RunView(said["run"]).manifest["phases"]["rl"]["state"] == "trained"
    page = (Path(said["run"]) / "report.html").read_text(encoding="utf-8")
    assert "divergence from the reference" in page and "over √KL" in page
