"""Two processes over gloo train as one process does: the same rows in each step, the same loss curve."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.test_train import planted_pairs, write
from tests.tiny import make_model

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "accelerate" / "cpu.yaml"


def curve_of(spec: dict[str, Any], folder: Path, *, processes: int) -> list[float]:
    """Train in `processes` processes and return the losses."""
    out = folder / f"{spec['method']}-{processes}"
    path = out.with_suffix(".json")
    path.write_text(json.dumps({**spec, "out": str(out)}))
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG)] if processes > 1 else []
    command = [sys.executable, *launch, "-m", "cai.train.run", str(path)]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = (out / "curve.jsonl").read_text().splitlines()
    assert (out / "checkpoint.json").exists()
    return [json.loads(line)["loss"] for line in lines]


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_two_processes_give_the_loss_curve_of_one(method: str, tmp_path: Path) -> None:
    tiny = make_model(tmp_path / "tiny", pad=True)
    rows = [{**row, "weight": 1 + i % 3} for i, row in enumerate(planted_pairs(48))]
    if method == "sft":
        said = [row["chosen"][0]["content"] for row in rows]
        rows = [{"prompt": r["prompt"], "completion": text, "id": text} for r, text in zip(rows, said, strict=True)]
    spec = {
        "method": method,
        "rows": str(write(tmp_path / "rows.jsonl", rows)),
        "base": str(tiny),
        "seed": 2,
        "device": "cpu",
        "dtype": "float32",
        "settings": {"learning_rate": 0.01, "epochs": 2.0, "batch_size": 8, "micro_batch_size": 4, "lora": {"r": 8}},
    }
    if method == "reward":
        spec["settings"]["held_out"] = 0.0
    one, two = (curve_of(spec, tmp_path, processes=n) for n in (1, 2))
    assert len(one) == 12 and max(one) - min(one) > 0.01
    assert two == pytest.approx(one, abs=1e-3)
