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
    """Raise UserError for names of layers that a model does not have: an adapter would pass over them in silence."""
    model = _without_weights(checkpoint, None, trust_remote_code)
    layers = [f".{name}" for name, _ in model.named_modules()]
    missing = [name for name in names if not any(layer.endswith(f".{name}") for layer in layers)]
    if missing:
        raise UserError(
            f"lora.targets: '{checkpoint}' has no layer '{missing[0]}'; its linear layers are "
            f"{', '.join(_linear(model))}"
        )


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
