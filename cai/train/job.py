"""One training as a value: what to train, on what, how, and what came of it."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cai.config import TrainerSection
from cai.errors import CaiError, UserError
from cai.train.checkpoint import Folder
from cai.train.data import Example

OnStep = Callable[[dict[str, Any]], None]
"""Takes a line of the curve: step, steps, loss, lr, eta_s, tokens_per_s, and what the method adds."""
_CLEARLY = 1.5
"""So many times as long a product in float32 has to take for bfloat16 to be chosen on a CPU."""


class Interrupted(CaiError):
    """Training was asked to stop. Its state is saved, and the same request goes on from there."""

    exit_code = 130


@dataclass(frozen=True)
class TrainResult:
    """What a training left."""

    path: Path
    """The folder of the weights: OUT/adapter or OUT/model."""
    manifest: dict[str, Any]
    """What `checkpoint.json` says."""
    reused: bool
    """Whether the checkpoint was there already, so that nothing was trained."""


@dataclass(frozen=True)
class Job:
    """One training, resolved."""

    folder: Folder
    """Where its state and its checkpoint go."""
    base: str
    """Local path or hub id of the model to train."""
    settings: TrainerSection
    """Settings of the method."""
    examples: list[Example]
    """The rows as token ids."""
    order: list[int]
    """Numbers of the rows in the order of training, over all passes."""
    seed: int
    """Decides the adapter's first weights and dropout. The order was drawn with it too."""
    device: str
    """`cpu` or `cuda`."""
    dtype: str
    """`float32` or `bfloat16`."""
    on_step: OnStep | None
    """Told of every step."""
    stop: threading.Event
    """Set from outside to stop after the step in progress."""
    resume: Path | None
    """The sealed state to go on from; None starts anew."""
    trust_remote_code: bool = False
    """Whether Python code that comes with the base is run."""

    @property
    def steps(self) -> int:
        """Optimizer steps in all."""
        whole = math.ceil(len(self.order) / self.settings.batch_size)
        return min(whole, self.settings.max_steps or whole)

    @property
    def kind(self) -> str:
        """What is saved: `adapter` or `model`."""
        return "adapter" if self.settings.lora else "model"


def pick_device(device: str) -> str:
    """Return `cpu` or `cuda`."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device: 'cuda', but torch sees no GPU here; set train.device: auto or cpu")
    return device


def pick_dtype(dtype: str, device: str) -> str:
    """Return `bfloat16` where this machine trains clearly faster with it, `float32` elsewhere.

    Measured on a CPU, not looked up: one without bfloat16 arithmetic emulates it, up to forty times slower. Where both
    take about as long, noise must not decide, and there is nothing to gain from rounding.
    """
    if dtype != "auto":
        return dtype
    if device == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    return "bfloat16" if _product_s(torch.float32) > _CLEARLY * _product_s(torch.bfloat16) else "float32"


def _product_s(dtype: torch.dtype, size: int = 512) -> float:
    """Return the seconds that a small matrix product takes, forward and backward, the better of two."""
    weight = torch.full((size, size), 0.01, dtype=dtype, requires_grad=True)
    inputs = torch.full((128, size), 0.01, dtype=dtype, requires_grad=True)
    took = []
    for _ in range(3):
        began = time.perf_counter()
        (inputs @ weight).sum().backward()
        took.append(time.perf_counter() - began)
    return min(took[1:])  # the first one also loads the kernels
