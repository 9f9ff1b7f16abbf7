"""Ten `kill -9` at random moments of a training, and a resume after each: the curve is the undisturbed one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_train import planted_pairs, write
from tests.tiny import make_model

N_KILLS = 10
SCRIPT = '''
import json, os, random, signal, sys, threading, warnings
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
import importlib
from pathlib import Path
from cai.config import DpoSection, RewardSection, SftSection

method, model, rows, folder, n_kills = sys.argv[1:]
settings = {"sft": SftSection, "dpo": DpoSection, "reward": RewardSection}[method].model_validate(
    {"learning_rate": 0.003, "epochs": 8.0, "batch_size": 8, "micro_batch_size": 4, "lora": {"r": 8, "dropout": 0.1},
     "save_steps": 3, "schedule": "cosine", **({"held_out": 0.0} if method == "reward" else {})}
)
train = importlib.import_module(f"cai.train.{method}").train
dice = random.SystemRandom()

def once(out, on_step=None):
    return train(rows, model, Path(folder) / out, settings, seed=4, device="cpu", dtype="float32", on_step=on_step)

def killed():
    """Train in a forked process that kills itself somewhere in or after a random step; return the step it was in."""
    after, delay = dice.randint(1, 7), dice.uniform(0, 0.15)
    seen = []
    def on_step(row):
        seen.append(row["step"])
        if len(seen) == after:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    pid = os.fork()
    if pid == 0:
        once("killed", on_step)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    return os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL

n = sum(killed() for _ in range(int(n_kills)))
once("killed")
once("whole")
print(json.dumps({"killed": n}))
'''


@pytest.mark.parametrize("method", ["sft", "dpo", "reward"])
def test_ten_kills_leave_the_curve_and_the_weights_as_they_were(method: str, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = make_model(tmp_path / "tiny", pad=True)
    pairs = planted_pairs(64)
    said = [{"prompt": r["prompt"], "completion": r["chosen"][0]["content"], "id": str(i)} for i, r in enumerate(pairs)]
    rows = write(tmp_path / "rows.jsonl", said if method == "sft" else pairs)
    script = tmp_path / "kills.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), method, str(model), str(rows), str(tmp_path), str(N_KILLS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout.splitlines()[-1])["killed"] >= N_KILLS - 2, "most kills must hit a training alive"
    texts = [(tmp_path / out / "curve.jsonl").read_text() for out in ("whole", "killed")]
    curves = [[json.loads(line) for line in text.splitlines()] for text in texts]
    assert [row["step"] for row in curves[1]] == list(range(1, 65))
    assert [r["loss"] for r in curves[1]] == pytest.approx([r["loss"] for r in curves[0]], abs=1e-4)
    ours, theirs = (load_file(tmp_path / o / "adapter" / "adapter_model.safetensors") for o in ("killed", "whole"))
    assert max((ours[k] - theirs[k]).abs().max().item() for k in ours) < 1e-4
