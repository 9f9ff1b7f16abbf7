"""Turns a GGUF file into a Hugging Face model folder that can be served and trained."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cai.errors import UserError, install_extra

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

# What `transformers` leaves in the files about the machine and the moment of the conversion.
_INCIDENTAL = ("_name_or_path", "_model_name_or_path", "_from_model_config", "is_local", "local_files_only")


def convert(gguf: Path, out: Path) -> dict[str, str]:
    """Write model, tokenizer and configs of `gguf` into the folder `out`; return the versions that did it.

    The weights are unpacked to bfloat16, in half of float32's size: its 8 bits of precision are finer than the 4 bits
    that they were packed in. This is how they are kept; what they are computed in is chosen where they are loaded.
    Raises UserError when a library is missing.
    """
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of the libraries; a failure is an exception
        model, tokenizer = _load(gguf)
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        _tidy(out / name, max_tokens=model.config.max_position_embeddings)
    import torch
    import transformers

    return {"transformers": transformers.__version__, "torch": torch.__version__}


def _load(gguf: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    try:
        import accelerate  # noqa: F401  transformers loads a GGUF through it
        import gguf as _  # noqa: F401
        import torch
        import transformers
    except ImportError as error:
        raise UserError(
            f"converting '{gguf.name}' needs the library '{error.name}', which is not installed here; "
            f"install it ({install_extra('train')}), then fetch again"
        ) from None
    # Newer versions may keep the weights in GGUF blocks, which neither trains nor saves; older ones always unpack.
    config = getattr(transformers, "GgufConfig", None)
    unpack = {"quantization_config": config(dequantize=True)} if config else {}
    where = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    packed = transformers.AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, **unpack)
    tokenizer = transformers.AutoTokenizer.from_pretrained(**where)
    tokenizer.model_max_length = packed.config.max_position_embeddings
    if _pre_tokenizer(gguf) == "smollm":
        _split_digits(tokenizer)
    return _plain(packed), tokenizer


def _plain(packed: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a model that knows nothing of GGUF: one loaded from it refuses to be saved."""
    import torch
    import transformers

    settings = {key: value for key, value in packed.config.to_dict().items() if key != "quantization_config"}
    config = type(packed.config).from_dict(settings)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.load_state_dict(packed.state_dict(), strict=True)
    model.generation_config = packed.generation_config
    return model


def _pre_tokenizer(gguf: Path) -> str | None:
    """Return the GGUF's name for how text is cut before the byte-pair merges."""
    from gguf import GGUFReader

    field = GGUFReader(gguf).get_field("tokenizer.ggml.pre")
    return field.contents() if field else None


def _split_digits(tokenizer: PreTrainedTokenizerFast) -> None:
    """Cut each digit off first, as SmolLM2 was trained.

    `transformers` reads GPT-2's rule from the GGUF instead, which turns a paragraph break before a number, as in every
    numbered list, into tokens that the model never saw there.
    """
    from tokenizers import pre_tokenizers

    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, byte_level])


def _tidy(path: Path, *, max_tokens: int) -> None:
    settings: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    kept = {key: value for key, value in settings.items() if key not in _INCIDENTAL}
    if "model_max_length" in kept:
        kept["model_max_length"] = max_tokens
    path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
