"""Which layers of a model a low-rank adapter goes into."""

from __future__ import annotations

from cai.model.code import asked_for


def linear_layers(checkpoint: str, revision: str | None = None, *, trust_remote_code: bool = False) -> tuple[str, ...]:
    """Return the last names of a model's linear layers without its output layer: PEFT's `all-linear`.

    The model is built without weights, from its config alone. Raises UserError where it needs code of its own that was
    not asked for.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.pytorch_utils import Conv1D

    how = {"trust_remote_code": trust_remote_code}
    with asked_for(checkpoint), torch.device("meta"):
        config = AutoConfig.from_pretrained(checkpoint, revision=revision, **how)
        model = AutoModelForCausalLM.from_config(config, **how)
    output = model.get_output_embeddings()
    found = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not output
    }
    return tuple(sorted(found))
