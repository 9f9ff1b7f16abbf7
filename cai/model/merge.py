"""An adapter folded into its base: a full checkpoint that any server takes.

    python -m cai.model.merge BASE ADAPTER OUT [--trust-remote-code]

Runs as a process of its own in a pipeline, so that the weights' memory goes with it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from cai import canon
from cai.errors import CaiError, UserError
from cai.model.code import asked_for
from cai.model.fetch import resolve
from cai.model.folder import publish
from cai.model.trained import check_fits, is_finished, manifest_of


def merge_adapter(base: str, adapter: str, out: Path, *, trust_remote_code: bool = False) -> Path:
    """Write `base` with the LoRA weights of `adapter` added to `out`, whole or not at all, and return `out`.

    The sum is taken and kept in float32 where there is no GPU: an adapter's changes are often smaller than
    bfloat16's steps around the weights they change. On a GPU machine bfloat16 is kept, to be served as it is.
    Raises UserError where the adapter was not trained on a model of these shapes, or the base needs code of its own
    that was not asked for.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    _check(adapter, base)
    with asked_for(base):
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    try:
        merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    except (RuntimeError, ValueError) as error:
        found = f"{adapter}: does not fit the base '{base}' ({error})"
        raise UserError(f"{found}; give the base it was trained on") from error
    if torch.cuda.is_available():
        merged = merged.to(torch.bfloat16)
    with publish(out, {"base": Path(base).name, "adapter": Path(adapter).parent.name}) as folder:
        merged.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return out


def _check(adapter: str, base: str) -> None:
    folder = Path(adapter)
    if not (folder / "adapter_model.safetensors").exists():
        raise UserError(f"{adapter}: no adapter_model.safetensors here; adapters are read as safetensors only")
    try:
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{adapter}: adapter_config.json cannot be read ({error})") from error
    # A base of the same shapes would take any adapter without a word. A model of the hub is known by its name alone.
    out = folder.parent
    if is_finished(out) and Path(base).is_dir():
        said = manifest_of(out)
        if said["base_id"].startswith(canon.ID_PREFIX):
            check_fits(out, said, base)


def main(arguments: Sequence[str]) -> int:
    """Merge, and return the exit code. BASE may be an embedded name."""
    places = [word for word in arguments if word != "--trust-remote-code"]
    if len(places) != 3:
        print("usage: python -m cai.model.merge BASE ADAPTER OUT [--trust-remote-code]", file=sys.stderr)
        return 2
    base, adapter, out = places
    try:
        merge_adapter(resolve(base), adapter, Path(out), trust_remote_code=len(places) < len(arguments))
    except CaiError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
