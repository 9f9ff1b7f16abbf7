"""A policy that several processes hold in parts (FSDP2): put together where answers are written, gathered to be kept.

torch's `fully_shard` does it: accelerate calls it for TRL's trainers, and `shard` for PPO, whose loop is our own. What
is trained is computed part by part. Where no gradient is asked for, every process holds the whole weights for a while:
answers take as many passes as they have tokens, and no two processes equally many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from cai.durable import sync_file, sync_folder


def shard(model: nn.Module, layers: set[str], device: str, *, in_bf16: bool) -> None:
    """Leave every process its part of the weights, by layers of these class names; what is left over is one part more.

    Computed in bfloat16 with `in_bf16`, kept as they are. Has to come before an optimizer is made.
    """
    mesh = init_device_mesh(device, (torch.distributed.get_world_size(),))
    kinds = {"param_dtype": torch.bfloat16, "reduce_dtype": torch.float32} if in_bf16 else {}
    for module in [module for module in model.modules() if type(module).__name__ in layers]:
        fully_shard(module, mesh=mesh, mp_policy=MixedPrecisionPolicy(**kinds))
    fully_shard(model, mesh=mesh, mp_policy=MixedPrecisionPolicy(**kinds))


@contextmanager
def whole(*models: nn.Module | None) -> Iterator[None]:
    """Hold the whole weights of models in every process while the block runs; all of them have to come here.

    The first is the one that is trained: its root, which is needed again at once, stays whole after a forward pass.
    """
    units = [unit for model in models if model for unit in model.modules() if isinstance(unit, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(unit is not units[0], recurse=False)
            unit.reshard()


def full(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor whole, wherever its parts are; all processes have to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, torch.Tensor], *, keep: bool) -> dict[str, torch.Tensor]:
    """Return tensors whole and on the CPU; where `keep` is false none, since one process has to hold them only."""
    found = {}
    for name, tensor in tensors.items():
        whole_tensor = full(tensor.detach())
        if keep:
            found[name] = whole_tensor.contiguous().cpu()
    return found


def keep(weights: Mapping[str, torch.Tensor], path: Path, *, is_main: bool) -> None:
    """Write weights whole into a file that appears by a rename. All processes have to come; the main one writes."""
    found = gathered(weights, keep=is_main)
    if is_main:
        part = path.with_suffix(".part")
        save_file(found, part)
        sync_file(part)
        part.rename(path)
        sync_folder(path.parent)


def parted(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Return a whole tensor in the parts that `like` is in."""
    tensor = tensor.to(like.device)
    return distribute_tensor(tensor, like.device_mesh, like.placements) if isinstance(like, DTensor) else tensor


def state_of(optimizer: torch.optim.Optimizer, *, keep: bool) -> dict[str, Any]:
    """Return an optimizer's state with whole tensors, as `restore` takes it; all processes have to ask for it."""
    state = optimizer.state_dict()
    return {**state, "state": {i: gathered(kept, keep=keep) for i, kept in state["state"].items()}}


def restore(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Take over a state that `state_of` gave.

    Its moments are parted first, one at a time: torch puts whatever it is given on the parameter's device, all of it
    at once, and whole moments need not fit there.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    parts = {}
    for i, kept in state["state"].items():
        like = parameters[i]
        parts[i] = {name: parted(value, like) if value.shape == like.shape else value for name, value in kept.items()}
    optimizer.load_state_dict({**state, "state": parts})
