"""A model in this process, through transformers: the road where vLLM cannot be installed (`engine: transformers`).

Requests wait for each other just long enough to share batches. A row draws its tokens from a generator of its own, so
neither the seed's meaning nor, but for rounding, the text depends on the batch a request happens to be in.

Shapes: B rows (requests), T tokens, V vocabulary.
"""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from cai.config import EngineSection
from cai.engine.batches import Batches
from cai.engine.model import Generate, Likelihood, Reply, Sampling, ScoreGroup
from cai.engine.scoring import LEAST_LOGPROB
from cai.engine.server import cpu_multiplies_bfloat16
from cai.engine.tokens import Tokens
from cai.errors import EngineError, RejectedError

_MAX_ROWS = 32
_MAX_BATCH_TOKENS = 16_384
_LEAST_SHARED = 32
"""Prompts that share fewer tokens than this are read whole."""


class _Row(NamedTuple):
    """One prompt to continue."""

    ids: list[int]
    seed: int


class _Written(NamedTuple):
    text: str
    finish_reason: str
    n_tokens: int


class LocalModel:
    """A Model in this process. Its work runs in one thread, so that the event loop stays free."""

    def __init__(self, model: Any, decoder: Any, tokens: Tokens, *, identity: str) -> None:
        """`model` is a causal language model of transformers in evaluation mode, `decoder` its tokenizer."""
        self.identity = identity
        self._model, self._decoder, self._tokens = model, decoder, tokens
        self._stops = frozenset(stop_ids(model, decoder))
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-model")
        limits = {"max_items": _MAX_ROWS, "max_cost": _MAX_BATCH_TOKENS}
        self._generations: Batches[_Row, _Written] = Batches(self._generate, self._thread, **limits)
        self._likelihoods: Batches[tuple[list[int], int], float] = Batches(self._likelihood, self._thread, **limits)
        self._scores: Batches[list[list[int]], list[list[float]]] = Batches(
            self._score, self._thread, max_items=1, max_cost=1
        )

    @classmethod
    def load(cls, checkpoint: str, engine: EngineSection, *, identity: str, revision: str | None = None) -> LocalModel:
        """Return the model of a folder or hub id, on the GPU if there is one.

        Weights are read from safetensors only, and no code that a folder brings is run. Raises EngineError where it
        cannot be loaded, UserError where its tokenizer cannot be used.
        """
        tokens = Tokens.load(checkpoint, revision)
        limits = [n for n in (tokens.max_len, engine.max_model_len) if n]
        tokens.max_len = min(limits) if limits else None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        fast_bfloat16 = device == "cuda" or cpu_multiplies_bfloat16()
        where = {"revision": revision, "trust_remote_code": False, "local_files_only": Path(checkpoint).is_dir()}
        try:
            model = AutoModelForCausalLM.from_pretrained(
                checkpoint, dtype=torch.bfloat16 if fast_bfloat16 else torch.float32, use_safetensors=True, **where
            )
            decoder = AutoTokenizer.from_pretrained(checkpoint, **where)
            model = model.to(device).eval()
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            raise EngineError(f"'{checkpoint}' cannot be loaded by transformers: {error}") from error
        return cls(model, decoder, tokens, identity=identity)

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation. Raises RejectedError where the prompt leaves no room in the context."""
        started = time.monotonic()
        ids = self._tokens.prompt_ids(request.turns, open_final=False)
        self._check_room(len(ids), request.sampling.max_tokens)
        width = len(ids) + request.sampling.max_tokens
        written = await self._generations.ask(request.sampling, width, _Row(ids, request.seed))
        reply = Reply(text=written.text, finish_reason=written.finish_reason)
        return _signed(reply, len(ids), written.n_tokens, started)

    async def score(self, group: ScoreGroup) -> list[Reply]:
        """Return one reply per tail. A tail that does not fit the context is invalid (`too_long`), not an error."""
        started = time.monotonic()
        prompts = self._tokens.group_ids(group.head, group.tails)
        fitting = [i for i, ids in enumerate(prompts) if self._fits(len(ids), 1)]
        replies = [Reply(error="too_long") for _ in prompts]
        found = await self._scores.ask("score", 1, [prompts[i] for i in fitting]) if fitting else []
        for i, logprobs_V in zip(fitting, found, strict=True):
            option_ids = self._tokens.option_ids(group.tails[i], group.options)
            logprobs = {o: max(logprobs_V[k], LEAST_LOGPROB) for o, k in zip(group.options, option_ids, strict=True)}
            outside = max(0.0, 1.0 - sum(torch.tensor(list(logprobs.values())).exp().tolist()))
            replies[i] = Reply(logprobs=logprobs, outside=outside)
        return [_signed(reply, len(ids), 1, started) for reply, ids in zip(replies, prompts, strict=True)]

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer. Raises RejectedError where it exceeds the context."""
        started = time.monotonic()
        prompt = self._tokens.prompt_ids(request.turns, open_final=False)
        answer = self._tokens.answer_ids(request.answer)
        self._check_room(len(prompt) + len(answer), 0)
        ids = prompt + answer
        logp = await self._likelihoods.ask("likelihood", len(ids), (ids, len(answer))) if answer else 0.0
        return _signed(Reply(logp=logp), len(prompt), len(answer), started)
