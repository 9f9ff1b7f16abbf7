"""FSDP and DeepSpeed by accelerate, on CPUs: it would take them up on GPUs only; what follows is the same on both."""

from __future__ import annotations

import os
from typing import Any

LAUNCHED = {
    "FSDP": {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_VERSION": "2",
        "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
        "FSDP_RESHARD_AFTER_FORWARD": "true",
        "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
        "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
    },
    "DEEPSPEED": {
        "ACCELERATE_USE_DEEPSPEED": "true",
        "ACCELERATE_DEEPSPEED_ZERO_STAGE": "2",
        "ACCELERATE_GRADIENT_CLIPPING": "1.0",
        "ACCELERATE_TORCH_DEVICE": "cpu",
        "DS_ACCELERATOR": "cpu",
    },
}
"""What `accelerate launch` sets for configs/accelerate/fsdp.yaml and deepspeed-zero2.yaml."""


def take_up() -> None:
    """Have accelerate shard in this process, as its environment says, though it runs on a CPU."""
    _refuse_whole_moments()
    if os.environ.get("FSDP_VERSION"):
        _take_up_fsdp()
    if os.environ.get("DS_ACCELERATOR"):
        _take_up_deepspeed()


def _refuse_whole_moments() -> None:
    """Have optimizers refuse a whole moment of a parameter in parts: torch would put all of them on the GPU at once."""
    from torch import Tensor
    from torch.distributed.tensor import DTensor
    from torch.optim import Optimizer

    plain = Optimizer.load_state_dict

    def whole(value: Any, parameter: Any) -> bool:
        if not isinstance(parameter, DTensor) or not isinstance(value, Tensor) or isinstance(value, DTensor):
            return False
        return value.shape == parameter.shape

    def load_state_dict(self: Any, state_dict: Any) -> None:
        parameters = dict(enumerate(p for group in self.param_groups for p in group["params"]))
        for i, kept in state_dict["state"].items():
            for name, value in kept.items():
                assert not whole(value, parameters.get(i)), f"'{name}' of parameter {i} is whole, expected its parts"
        plain(self, state_dict)

    Optimizer.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _take_up_fsdp() -> None:
    from accelerate import state

    plain = state.AcceleratorState.__init__

    def told(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        plain(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            if self._mixed_precision != "no":
                fsdp_plugin.set_mixed_precision(self._mixed_precision)
            self.fsdp_plugin, self.distributed_type = fsdp_plugin, state.DistributedType.FSDP
            state.PartialState._shared_state["distributed_type"] = self.distributed_type

    state.AcceleratorState.__init__ = told  # type: ignore[method-assign]


def _take_up_deepspeed() -> None:
    from accelerate import state

    of_process, of_all = state.PartialState.__init__, state.AcceleratorState.__init__

    def process_told(self: Any, cpu: bool = False, **kwargs: Any) -> None:
        of_process(self, cpu=False, **kwargs)

    def all_told(self: Any, mixed_precision: Any = None, cpu: bool = False, **kwargs: Any) -> None:
        of_all(self, mixed_precision, False, **kwargs)

    os.environ.pop("ACCELERATE_USE_CPU")
    state.PartialState.__init__ = process_told  # type: ignore[method-assign]
    state.AcceleratorState.__init__ = all_told  # type: ignore[method-assign]
    state.PartialState._prepare_backend = lambda *_: ("gloo", state.DistributedType.MULTI_GPU)  # type: ignore[method-assign]
