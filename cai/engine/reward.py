"""A reward model in this process: any sequence-classification folder or hub id of transformers.

One label is the reward; of two, the second's logit less the first's. Prompts go through the tokenizer's chat template
where it has one, else as `Human:` and `Assistant:` turns, as the first public reward models were trained.

Shapes: B rows (answers), T tokens, L labels.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from cai.engine.batches import Batches
from cai.engine.identity import commit_of
from cai.engine.model import Reply, Reward
from cai.errors import EngineError, UserError
from cai.model.code import asked_for
from cai.templates import Turn

_MAX_ROWS = 16
_MAX_BATCH_TOKENS = 8_192
_NAMES = {"user": "Human", "assistant": "Assistant", "system": "System"}


class RewardModel:
    """A Scorer in this process. Its work runs in one thread of its own, so that the event loop stays free."""

    def __init__(self, model: Any, tokenizer: Any, *, identity: str, max_len: int | None = None) -> None:
        """`model` is a sequence classifier of one or two labels, ready for inference."""
        self.identity = identity
        self._model, self._tokenizer, self._max_len = model, tokenizer, max_len
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reward-model")
        self._score: Batches[list[int], float] = Batches(
            self._score_all, self._thread, max_items=_MAX_ROWS, max_cost=_MAX_BATCH_TOKENS
        )

    @classmethod
    def load(
        cls, checkpoint: str, *, identity: str, revision: str | None = None, trust_remote_code: bool = False
    ) -> RewardModel:
        """Return the model of a folder or hub id, on the GPU if there is one.

        Weights come from safetensors alone, and code that comes with them is not run unless asked for. Raises UserError
        where it is no reward model or needs its own code, EngineError where it cannot be loaded.
        """
        disable_progress_bar()
        is_folder = Path(checkpoint).is_dir()
        commit = None if is_folder else commit_of(checkpoint, revision)
        source = {"revision": commit, "trust_remote_code": trust_remote_code, "local_files_only": is_folder}
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" else torch.float32
        try:
            with asked_for(checkpoint):
                tokenizer = AutoTokenizer.from_pretrained(checkpoint, **source)
                model = AutoModelForSequenceClassification.from_pretrained(
                    checkpoint, dtype=dtype, use_safetensors=True, output_loading_info=True, **source
                )
        except (OSError, ValueError, KeyError, torch.OutOfMemoryError) as error:
            raise EngineError(f"'{checkpoint}': transformers cannot load it as a reward model ({error})") from error
        model, info = model
        missing = sorted(info["missing_keys"])
        if any("score" in key or "classifier" in key for key in missing):
            raise UserError(
                f"'{checkpoint}': found no weights for a reward head (missing {', '.join(missing)}); "
                "give a checkpoint that was trained as a sequence classifier"
            )
        if model.config.num_labels not in (1, 2):
            raise UserError(
                f"'{checkpoint}': found {model.config.num_labels} labels, expected one (or two) of a reward"
            )
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        model.config.pad_token_id = tokenizer.pad_token_id
        length = getattr(model.config, "max_position_embeddings", None)
        return cls(model.to(device).eval(), tokenizer, identity=identity, max_len=length)

    async def reward(self, request: Reward) -> Reply:
        """Return the answer's reward; a conversation that exceeds the context is not cut but refused (`too_long`)."""
        began = time.monotonic()
        ids = self._ids((*request.turns, Turn("assistant", request.answer)))
        if self._max_len is not None and len(ids) > self._max_len:
            return Reply(error="too_long", n_prompt=len(ids))
        found = await self._score.ask("reward", len(ids), ids)
        seconds = round(time.monotonic() - began, 4)
        return Reply(reward=found, n_prompt=len(ids), road="transformers", server="in-process", duration_s=seconds)

    async def close(self) -> None:
        """Give the model's memory back once what is at work has ended. Nothing can be asked afterwards."""
        await asyncio.to_thread(self._thread.shutdown)
        self._model = None

    def _ids(self, turns: Sequence[Turn]) -> list[int]:
        if not getattr(self._tokenizer, "chat_template", None):
            text = "".join(f"\n\n{_NAMES[t.role]}: {t.text}" for t in turns)
            return list(self._tokenizer(text)["input_ids"])
        messages = [{"role": t.role, "content": t.text} for t in turns]
        ids = list(self._tokenizer.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
        # Models of ours are trained to say the reward at the end of the turn; a template may write more after it.
        end = getattr(self._model.config, "reward_end_token_id", None)
        return ids[: len(ids) - ids[::-1].index(end)] if end in ids else ids

    @torch.inference_mode()
    def _score_all(self, _: Hashable, rows: Sequence[list[int]]) -> list[float]:
        """Return one reward per row. Rows are padded on the right, where classifiers look for the last real token."""
        width, pad = max(map(len, rows)), self._tokenizer.pad_token_id
        if getattr(self._model.config, "reward_end_token_id", None) == pad:
            # Classifiers look for the last token that does not pad, which must not be taken for the turn's end.
            used = set().union(*rows)
            pad = self._model.config.pad_token_id = next(i for i in range(len(used) + 1) if i not in used)
        device = self._model.device
        ids_BT = torch.tensor([row + [pad] * (width - len(row)) for row in rows], device=device)
        mask_BT = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=device)
        logits_BL = self._model(input_ids=ids_BT, attention_mask=mask_BT).logits.float()
        reward_B = logits_BL[:, 0] if logits_BL.shape[-1] == 1 else logits_BL[:, 1] - logits_BL[:, 0]
        return reward_B.tolist()
