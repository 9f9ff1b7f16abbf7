"""What is looked at before anything is trained or written: the base model's files, and whether the rows can teach."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cai.config import DpoSection, RewardSection, TrainerSection
from cai.errors import UserError
from cai.model.code import asked_for
from cai.model.linear import check_named
from cai.train.data import Example

_YES = ("true", "1")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")


def check_base(path: str) -> None:
    """Raise UserError where a local model has no whole safetensors weights, or an adapter stands in its place."""
    folder = Path(path)
    if not folder.is_dir():
        return
    if weights := sorted(folder.glob("model*.safetensors")):
        _check_whole(folder, weights)
        return
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{path}: found an adapter, expected a whole model; merge it first "
            "(python -m cai.model.merge BASE ADAPTER OUT)"
        )
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    found = f"found {pickles[0]}, a pickle, which can run code when it is loaded" if pickles else "found no weights"
    raise UserError(f"{path}: {found}; expected model.safetensors (save the model again with save_pretrained)")


def _check_whole(folder: Path, weights: Sequence[Path]) -> None:
    """Raise UserError for a file of weights that was cut short, or one that the index names and that is not there."""
    from safetensors import SafetensorError, safe_open

    index = folder / "model.safetensors.index.json"
    named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()) if index.exists() else set()
    if missing := sorted(named - {path.name for path in weights}):
        raise UserError(f"{folder}: {missing[0]} is not here, though {index.name} names it; fetch the model again")
    for path in weights:
        try:
            with safe_open(path, "pt"):
                pass
        except SafetensorError as error:
            raise UserError(
                f"{path}: not whole safetensors weights ({error}); fetch or save the model again"
            ) from error


def check_room(
    prompts: Sequence[tuple[str, int]], base: str, max_new_tokens: int, *, trust_remote_code: bool = False
) -> None:
    """Raise UserError where the longest of the prompts (id, tokens) leaves no room in the model for an answer."""
    name, length = max(prompts, key=lambda prompt: prompt[1])
    context = _context(base, trust_remote_code)
    if context and length + max_new_tokens > context:
        raise UserError(
            f"prompt {name}: {length} tokens and {max_new_tokens} to answer with, but '{base}' reads at most "
            f"{context}; set max_length to {context} or less, and longer prompts are counted and left out"
        )


def _context(base: str, trusted: bool) -> int | None:
    from transformers import AutoConfig

    with asked_for(base):
        config = AutoConfig.from_pretrained(base, trust_remote_code=trusted)
    return getattr(config.get_text_config(), "max_position_embeddings", None)


def sharding() -> str | None:
    """Return by what `accelerate launch` was told to shard the model: `FSDP`, `DEEPSPEED`, or None."""
    asked = (name for name in ("FSDP", "DEEPSPEED") if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() in _YES)
    return next(asked, None)


def rows_at_once(settings: TrainerSection, n_processes: int) -> int:
    """Return how many rows a process takes at once: `micro_batch_size` or less, and all together `batch_size` a step.

    Raises UserError where the processes cannot take equally many.
    """
    share, rest = divmod(settings.batch_size, n_processes)
    if rest:
        raise UserError(
            f"batch_size: {settings.batch_size} rows a step cannot be shared by {n_processes} processes; set it to a "
            f"multiple of {n_processes}"
        )
    return next(n for n in range(min(settings.micro_batch_size, share), 0, -1) if share % n == 0)


def check_targets(settings: TrainerSection, base: str, *, trust_remote_code: bool = False) -> None:
    """Raise UserError where the adapter shall go into layers that the model does not have."""
    if settings.lora and settings.lora.targets != "all-linear":
        check_named(settings.lora.targets, base, trust_remote_code=trust_remote_code)


def settle_sharding(method: str, *, writes: bool, why: str = "") -> None:
    """Settle how a model is sharded, before accelerate looks: `accelerate launch` says it by environment variables.

    `writes` tells whether it writes answers, and `why` because of what. DeepSpeed's engine would take the steps that
    PPO takes itself, so FSDP shards in its place. Raises UserError where weights cannot be put together: to write
    answers under FSDP1 and ZeRO-3 (FSDP2 can, see cai.train.sharding, and ZeRO leaves them whole up to stage 2), and to
    be kept where every process shall keep its part in a file of its own.
    """
    from accelerate.utils import DeepSpeedPlugin

    if method == "ppo" and sharding() == "DEEPSPEED":
        if os.environ.get("RANK", "0") == "0":
            print("PPO: FSDP shards in place of DeepSpeed, whose engine takes the optimizer's steps", file=sys.stderr)
        os.environ |= {"ACCELERATE_USE_DEEPSPEED": "false", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if sharding() == "FSDP":
        # With it, all processes but the first hold zeros until accelerate fills them, and it fills only what it shards.
        os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] = "false"
        if method != "ppo" and os.environ.get("FSDP_STATE_DICT_TYPE") != "FULL_STATE_DICT":
            raise UserError(
                "fsdp_state_dict_type: the trained weights are kept whole, as safetensors; set it to FULL_STATE_DICT, "
                "as configs/accelerate/fsdp.yaml does"
            )
        if method != "ppo" and writes and os.environ.get("FSDP_VERSION") != "2":
            raise UserError(
                f"method '{method}'{why} writes answers with the model it trains, which FSDP1 cannot put together; set "
                "fsdp_version: 2, as configs/accelerate/fsdp.yaml does"
            )
    if sharding() == "DEEPSPEED" and writes and DeepSpeedPlugin().zero_stage == 3:
        raise UserError(
            f"method '{method}'{why} writes answers with the model it trains, which ZeRO-3 leaves in parts; launch it "
            "with configs/accelerate/fsdp.yaml, which shards as much, or with ZeRO-2"
        )


def check_resumed(state: Path | None, chosen: Mapping[str, Any]) -> None:
    """Raise UserError for a resume state of another kind of launch: each library keeps its shards in its own way."""
    was, now = chosen.get("sharding"), sharding()
    if state is not None and was != now:
        raise UserError(
            f"{state}: found a state that was kept {f'under {was}' if was else 'by whole models'}, expected one "
            f"{f'under {now}' if now else 'by whole models'}; launch as before, or remove {state.parent} to start anew"
        )


def check_examples(
    examples: list[Example], base: str, settings: TrainerSection, *, trust_remote_code: bool = False
) -> None:
    """Raise UserError for rows longer than the model reads, and for pairs of which none prefers either answer."""
    longest = max(examples, key=_length)
    context = _context(base, trust_remote_code)
    if context and _length(longest) > context:
        raise UserError(
            f"row {longest.id}: {_length(longest)} tokens, but '{base}' reads at most {context}; set "
            f"max_length to {context} or less, and longer rows are counted and left out"
        )
    ties_teach = isinstance(settings, RewardSection) and settings.ties != "half"
    if isinstance(settings, DpoSection | RewardSection) and settings.labels == "soft" and not ties_teach:
        if all(e.p_chosen == 0.5 and set(e.votes.values()) <= {0.5} for e in examples):
            raise UserError(
                f"all {len(examples)} pairs are ties (p_chosen 0.5), which prefer nothing, so nothing "
                "to learn from them (a reward model can learn ties beside decided pairs)"
            )


def _length(example: Example) -> int:
    return len(example.prompt_ids) + max(map(len, example.completions))
