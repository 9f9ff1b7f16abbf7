"""What the tests of training share: rows with a planted preference, settings, curves, one thread."""

from __future__ import annotations

import functools
import gc
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai import canon
from tests.tiny import WORDS

SETTINGS = {"learning_rate": 0.02, "epochs": 2.0, "batch_size": 8, "micro_batch_size": 4, "lora": {"r": 8}}


@functools.cache
def _freeze() -> None:
    """Every trainer collects garbage before its first step; what was imported need not be looked at each time."""
    import cai.train.dpo
    import cai.train.reward  # noqa: F401

    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A model this small only waits for its own threads, and with one the sums come out the same everywhere."""
    import torch

    _freeze()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # of the processes it starts
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def write(path: Path, rows: list[Any]) -> Path:
    path.write_bytes(b"".join(canon.dumps(r) + b"\n" for r in rows))
    return path


def message(text: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def planted_pairs(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Return pairs whose chosen answer always says `red` and never `blue`; the rejected one the other way round."""
    dice = random.Random(seed)
    plain = [w for w in WORDS if w not in ("red", "blue")]

    def around(word: str) -> str:
        words = dice.choices(plain, k=dice.randint(2, 6))
        words[dice.randrange(len(words))] = word
        return " ".join(words)

    return [
        {
            "prompt": message(" ".join(dice.choices(plain, k=4))),
            "chosen": message(around("red"), "assistant"),
            "rejected": message(around("blue"), "assistant"),
            "p_chosen": 0.95,
            "p_tie": 0.0,
        }
        for _ in range(n)
    ]


def curve(out: Path) -> list[dict[str, Any]]:
    """Return the lines of a training's curve."""
    return [json.loads(line) for line in (out / "curve.jsonl").read_text().splitlines()]


def margins(model: Path, adapter: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Return by how much the adapter raises the chosen answer of each row over the rejected one, in nats."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    from cai.train.batches import completion_logps, stacked_pairs, sum_by_arm
    from cai.train.data import Renderer, load_tokenizer
    from cai.train.rows import pair_row

    renderer = Renderer(load_tokenizer(str(model)))
    batch = stacked_pairs([renderer.example(pair_row(r)) for r in rows], 2)
    policy = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter)
    with torch.no_grad():
        chosen, rejected = sum_by_arm(completion_logps(policy, batch, fused=False), batch)
        with policy.disable_adapter():
            chosen_before, rejected_before = sum_by_arm(completion_logps(policy, batch, fused=False), batch)
    return (chosen - chosen_before - rejected + rejected_before).tolist()
