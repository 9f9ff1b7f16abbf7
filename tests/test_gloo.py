"""Two processes over gloo train as one process does: the same rows in each step, the same loss curve."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from cai.engine.scripted.server import ScriptedProcess
from tests import sharded
from tests.forked import Training, training
from tests.planted import write_prompts
from tests.tiny import make_model
from tests.training import curve, planted_pairs, write

CONFIG = Path(__file__).resolve().parent.parent / "configs" / "accelerate" / "cpu.yaml"
CONSTITUTION = """\
schema: 1
name: planted
description: Kept by about half of what the untrained model says.
principles: [{id: planted, title: Planted, revision: x, check: {must_match: [e]}}]
"""


def spec_of(method: str, folder: Path) -> dict[str, Any]:
    """Return a training of 12 steps."""
    rows = [{**row, "weight": 1 + i % 3} for i, row in enumerate(planted_pairs(48))]
    settings = {"learning_rate": 0.01, "epochs": 2.0, "batch_size": 8, "micro_batch_size": 4, "lora": {"r": 8}}
    further: dict[str, Any] = {}
    if method == "sft":
        said = [row["chosen"][0]["content"] for row in rows]
        rows = [{"prompt": r["prompt"], "completion": text, "id": text} for r, text in zip(rows, said, strict=True)]
    elif method == "reward":
        settings["held_out"] = 0.0
    path = write(folder / "rows.jsonl", rows)
    if method in ("ppo", "grpo", "rloo"):
        path = write_prompts(path, list("abcdefgh"))
        settings |= {
            "epochs": 99.0,
            "max_steps": 12,
            "max_new_tokens": 3,
            "learning_rate": 0.001,
            "watch": {"every": 6},
        }
        settings |= {"minibatches": 2} if method == "ppo" else {"answers": 4}
        further = looking(folder)
    told = {"method": method, "rows": str(path), "base": str(make_model(folder / "tiny", pad=True)), "seed": 2}
    return {**told, "device": "cpu", "dtype": "float32", "settings": settings, **further}


def looking(folder: Path) -> dict[str, Any]:
    """Return the spec of looks at three prompts."""
    (folder / "constitution.yaml").write_text(CONSTITUTION)
    held_out = write_prompts(folder / "held_out.jsonl", ["i", "j", "k"])
    return {"constitution": str(folder / "constitution.yaml"), "held_out": str(held_out)}


def losses(spec: dict[str, Any], folder: Path, *, processes: int, launched: bool = False) -> list[float]:
    """Train in `processes` processes, told of each other as `accelerate launch` tells them; return the losses."""
    out = folder / f"out-{processes}"
    path = out.with_suffix(".json")
    path.write_text(json.dumps({**spec, "out": str(out)}))
    if launched:
        command = ["-m", "accelerate.commands.launch", "--config_file", str(CONFIG), "-m", "cai.train.run", str(path)]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
    else:
        with started(path, processes) as ranks:
            for rank in ranks:
                assert rank.wait() == 0, rank.log.read_text()[-3000:]
    assert (out / "checkpoint.json").exists()
    return [row["loss"] for row in curve(out) if row["step"]]


@contextmanager
def started(
    path: Path, processes: int, *, dies: tuple[int, float] | None = None, **further: str
) -> Iterator[list[Training]]:
    """Yield the processes of a training, with `further` in their environment; the first one `dies` (tests.forked)."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with ExitStack() as stack:
        told = [environment(i, processes, port) | further for i in range(processes)]
        yield [stack.enter_context(training(path, each, None if i else dies)) for i, each in enumerate(told)]


def environment(rank: int, processes: int, port: int) -> dict[str, str]:
    """Return what `accelerate launch` sets for one process of several on a CPU."""
    if processes == 1:
        return {}
    numbers = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
    return {
        **{name: str(number) for name, number in numbers.items()},
        **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"},
    }


@pytest.mark.parametrize("method", ["sft", "dpo", "reward", "ppo"])
def test_two_processes_give_the_loss_curve_of_one(method: str, tmp_path: Path) -> None:
    spec = spec_of(method, tmp_path)
    one = losses(spec, tmp_path, processes=1)
    two = losses(spec, tmp_path, processes=2, launched=method == "dpo")
    assert len(one) == 12 and max(one) - min(one) > 0.01
    assert two == pytest.approx(one, abs=1e-3)


@pytest.mark.parametrize(
    ("lora", "asked"), [({"r": 8}, sharded.LAUNCHED["FSDP"]), (None, {"ACCELERATE_USE_DEEPSPEED": "true"})]
)
def test_a_policy_in_parts_gives_the_loss_curve_of_a_whole_one_and_is_resumed(
    lora: Any, asked: dict[str, str], tmp_path: Path
) -> None:
    """As `accelerate launch` asks for it; one of the two processes is killed on the way.

    No process is given a whole moment when it resumes (tests.sharded).
    """
    from safetensors.torch import load_file

    spec = spec_of("ppo", tmp_path)
    spec["settings"] |= {"lora": lora, "save_steps": 3, "max_steps": 8}
    one = losses(spec, tmp_path, processes=1)
    path = tmp_path / "out-2.json"
    path.write_text(json.dumps({**spec, "out": str(tmp_path / "out-2")}))
    with started(path, 2, dies=(5, 0.0), **asked) as (first, _):
        assert first.wait() == -signal.SIGKILL, first.log.read_text()[-3000:]
    assert not (tmp_path / "out-2" / "checkpoint.json").exists()
    with started(path, 2, **asked) as ranks:
        first_step = next(ranks[0].steps(), None)  # the last sealed state is that of step 3
        assert first_step == 4, ranks[0].log.read_text()[-3000:]
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()[-3000:]
    assert [row["loss"] for row in curve(tmp_path / "out-2") if row["step"]] == pytest.approx(one, abs=1e-3)
    said = [json.loads((tmp_path / out / "checkpoint.json").read_text()) for out in ("out-1", "out-2")]
    assert [each["sharding"] for each in said] == [None, "FSDP"]
    ours, theirs = (load_file(next((tmp_path / out).glob("*/*model.safetensors"))) for out in ("out-1", "out-2"))
    assert ours.keys() == theirs.keys()
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3


@pytest.mark.parametrize("by", ["FSDP", "DEEPSPEED"])
@pytest.mark.parametrize(
    ("method", "lora", "dtype"),
    [
        ("sft", None, "float32"),
        ("dpo", {"r": 8}, "bfloat16"),
        ("dpo", None, "float32"),
        ("reward", None, "float32"),
        ("grpo", {"r": 8}, "float32"),
        ("rloo", None, "float32"),
    ],
)
def test_a_model_that_accelerate_shards_learns_as_a_whole_one_does(
    method: str, lora: Any, dtype: str, by: str, tmp_path: Path
) -> None:
    """Looks at answers and a kill on the way included."""
    from safetensors.torch import load_file

    if by == "DEEPSPEED":
        pytest.importorskip("deepspeed", reason="needs `pip install deepspeed` and a C++ compiler")

    spec = spec_of(method, tmp_path)
    spec["settings"] |= {"lora": lora, "save_steps": 3, "max_steps": 8}
    spec["dtype"] = dtype
    if method != "reward":
        spec["settings"]["watch"] = {"every": 4, "max_new_tokens": 3}
        spec |= looking(tmp_path)
    made = []
    for name, further in (("whole", {}), ("parts", sharded.LAUNCHED[by])):
        out = tmp_path / name
        path = out.with_suffix(".json")
        path.write_text(json.dumps({**spec, "out": str(out)}))
        if further:
            with started(path, 2, dies=(5, 0.0), **further) as (first, _):
                assert first.wait() == -signal.SIGKILL, first.log.read_text()[-3000:]
            theirs = "pytorch_model_fsdp*" if by == "FSDP" else "*optim_states.pt"
            assert any((out / "state").rglob(theirs)), "or nothing was sharded"
        with started(path, 2, **further) as ranks:
            first_step = next(ranks[0].steps(), None)
            assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()[-3000:]
        assert first_step == (5 if further and method != "reward" else 4 if further else 1)
        timed = ("eta_s", "tokens_per_s", "step_time")
        rows = [{name: value for name, value in row.items() if name not in timed} for row in curve(out)]
        made.append((rows, load_file(next(out.glob("*/*model.safetensors")))))
    (told, whole), (told_in_parts, parts) = made
    assert len(told) >= 8 and whole.keys() == parts.keys()
    near = 1e-3 if dtype == "float32" else 5e-2
    for row, other in zip(told, told_in_parts, strict=True):
        assert other == pytest.approx(row, abs=near)
    assert max((whole[name] - parts[name]).abs().max().item() for name in whole) < near


def test_a_stop_that_reaches_one_process_ends_both_at_the_same_step(tmp_path: Path) -> None:
    spec = spec_of("sft", tmp_path)
    spec["settings"]["epochs"] = 99.0
    path = tmp_path / "out.json"
    path.write_text(json.dumps({**spec, "out": str(tmp_path / "out")}))
    with started(path, 2) as (first, second):
        assert next(first.steps()) == 1, first.log.read_text()[-3000:]
        second.send(signal.SIGTERM)
        assert [first.wait(), second.wait()] == [130, 130], first.log.read_text()[-3000:]
    stopped = curve(tmp_path / "out")[-1]["step"]
    with started(path, 2) as (first, _):
        assert next(first.steps()) == stopped + 1, first.log.read_text()[-3000:]


@pytest.mark.parametrize(("watched", "asked"), [(True, {}), (True, sharded.LAUNCHED["FSDP"]), (False, {})])
def test_nan_in_one_of_two_processes_ends_both_alike(watched: bool, asked: dict[str, str], tmp_path: Path) -> None:
    """One row says a word whose embedding is NaN; the other process has nothing of it."""
    import torch
    from safetensors.torch import load_file, save_file

    spec = spec_of("sft", tmp_path)
    base = Path(spec["base"]) / "model.safetensors"
    weights = load_file(base)
    weights["model.embed_tokens.weight"][6] = torch.nan
    save_file(weights, base, {"format": "pt"})
    rows = [json.loads(line) for line in Path(spec["rows"]).read_text().splitlines()]
    write(Path(spec["rows"]), [{**rows[0], "completion": "x7x", "id": "broken"}, *rows[1:]])
    if watched:
        spec["settings"]["watch"] = {"every": 99, "max_new_tokens": 3}
        spec |= looking(tmp_path)
    path = tmp_path / "out.json"
    path.write_text(json.dumps({**spec, "out": str(tmp_path / "out")}))
    with started(path, 2, **asked) as ranks:
        ended = [rank.wait() for rank in ranks]
        log = ranks[0].log.read_text()
    if watched:
        assert ended == [0, 0], log[-3000:]
        said = json.loads((tmp_path / "out" / "checkpoint.json").read_text())["tripped"]
        assert said["wire"] == "not_finite" and said["kept_step"] == 0
        kept = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
        assert not any(weight.any() for name, weight in kept.items() if "lora_B" in name), "not those of the start"
    else:
        assert ended == [1, 1] and not (tmp_path / "out" / "checkpoint.json").exists()
        assert len(re.findall("error: the loss is not finite at step .*; the rows of this batch: .*broken", log)) == 2


def test_nan_takes_a_policy_in_parts_back_to_its_best_weights(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    spec = spec_of("ppo", tmp_path)
    spec["settings"]["learning_rate"] = 1e37
    path = tmp_path / "out.json"
    path.write_text(json.dumps({**spec, "out": str(tmp_path / "out")}))
    with started(path, 2, ACCELERATE_USE_FSDP="true") as ranks:
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()[-3000:]
    said = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert said["tripped"]["wire"] == "not_finite" and said["tripped"]["kept_step"] == 0
    kept = load_file(tmp_path / "out" / "adapter" / "adapter_model.safetensors")
    assert all(torch.isfinite(weight).all() for weight in kept.values())


def test_processes_ask_one_judge_and_each_keeps_what_it_asked(tmp_path: Path) -> None:
    from cai import shipped
    from cai.config import EngineSection

    spec = spec_of("ppo", tmp_path)
    spec["settings"] |= {"max_steps": 2, "reward": {"judge_weight": 1.0}, "watch": {"every": 1}}
    text = CONSTITUTION.replace("revision: x, check: {must_match: [e]}", "compare: Which answer is kinder?")
    Path(spec["constitution"]).write_text(text)
    with ScriptedProcess() as server:
        spec["judge"] = {
            "model": {"base_url": [server.url]},
            "engine": EngineSection(kind="scripted").model_dump(mode="json"),
            "identity": "scripted",
            "tokens": "bytes",
            "templates": str(shipped.root() / "prompts"),
            "near": str(tmp_path / "run"),
            "max_outside_mass": 0.5,
        }
        losses(spec, tmp_path, processes=2)
    assert all("reward_judge" in row and "held_out_judge" in row for row in curve(tmp_path / "out-2") if row["step"])
    assert {path.name for path in (tmp_path / "out-2").glob("*.sqlite")} == {"judged.sqlite", "judged-1.sqlite"}
