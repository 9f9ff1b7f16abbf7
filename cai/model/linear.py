"""Which layers of a model a low-rank adapter goes into."""

from __future__ import annotations


def linear_layers(checkpoint: str, revision: str | None = None, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the last names of a model's linear layers without its output layer: PEFT's `all-linear`.

    The model is built without weights, from its config alone.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    how = {"trust_remote_code": trust_remote_code}
    config = AutoConfig.from_pretrained(checkpoint, revision=revision, **how)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, **how)
    output = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output
    }
    return tuple(sorted(found))
