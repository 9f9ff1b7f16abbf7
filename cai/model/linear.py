"""Which layers of a model a low-rank adapter goes into."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai.errors import UserError
from cai.model.code import asked_for


def linear_layers(checkpoint: str, revision: str | None = None, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the last names of a model's linear layers without its output layer: PEFT's `all-linear`.

    The model is built without weights, from its config alone. Raises UserError where it needs code of its own that was
    not asked for.
    """
    return _linear(_without_weights(checkpoint, revision, trust_remote_code))


def check_named(names: Sequence[str], checkpoint: str, *, trust_remote_code: bool = False) -> None:
    """Raise UserError for names of layers that a model does not have, or that no adapter can go into.

    PEFT would pass over the former in silence, and refuse the latter once everything is loaded.
    """
    model = _without_weights(checkpoint, None, trust_remote_code)
    modules = {f".{path}": module for path, module in model.named_modules()}
    for name in names:
        meant = [module for path, module in modules.items() if path.endswith(f".{name}")]
        unfit = next((module for module in meant if not _takes_adapter(module)), None)
        if unfit is not None:
            found = f"'{name}' of '{checkpoint}' is a {type(unfit).__name__}, which no adapter goes into"
        elif not meant:
            found = f"'{checkpoint}' has no layer '{name}'"
        else:
            continue
        raise UserError(f"lora.targets: {found}; its linear layers are {', '.join(_linear(model))}")


def _takes_adapter(module: Any) -> bool:
    """Return whether PEFT has a low-rank adapter for this kind of layer (`dispatch_default` in peft.tuners.lora)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    convolutions = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    return isinstance(module, (nn.Linear, Conv1D, nn.Embedding, nn.MultiheadAttention, *convolutions))


def _without_weights(checkpoint: str, revision: str | None, trusted: bool) -> Any:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with asked_for(checkpoint), torch.device("meta"):
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, trust_remote_code=trusted)
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trusted)


def _linear(model: Any) -> tuple[str, ...]:
    import torch
    from transformers.pytorch_utils import Conv1D

    output = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output
    }
    return tuple(sorted(found))
