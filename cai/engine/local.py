"""A model in this process, through transformers: the road where vLLM cannot be installed (`engine: transformers`).

Requests wait for each other just long enough to share batches. Every row draws its tokens by a generator of its own,
so that what a seed means, and but for rounding the text, does not depend on the batch a request happens to be in.

Shapes: B rows (requests), T tokens, N new tokens, V vocabulary.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import commonprefix
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.utils.logging import disable_progress_bar

from cai.config import EngineSection
from cai.engine.batches import Batches
from cai.engine.command import cpu_multiplies_bfloat16
from cai.engine.identity import commit_of
from cai.engine.model import Generate, Heard, Likelihood, Reply, Sampling, ScoreGroup
from cai.engine.scoring import LEAST_LOGPROB
from cai.engine.tokens import Tokens
from cai.errors import EngineError, RejectedError
from cai.model.code import asked_for

_MAX_ROWS = 32
_MAX_BATCH_TOKENS = 16_384
_LETS_GO = (DynamicLayer, DynamicSlidingWindowLayer)
"""Caches that can forget a row; those of recurrent layers hold states beside keys and values, and cannot."""
_LEAST_SHARED = 32
"""Prompts that share fewer tokens than this are each read whole."""


class Start(NamedTuple):
    """A prompt to continue."""

    ids: list[int]
    seed: int


class Question(NamedTuple):
    """A prompt, and the tokens whose probability of coming next is asked for."""

    ids: list[int]
    option_ids: list[int]


class Answer(NamedTuple):
    """A prompt with an answer at its end, which is `n_answer` tokens long."""

    ids: list[int]
    n_answer: int


class LocalModel:
    """A Model in this process. Its work runs in one thread of its own, so that the event loop stays free."""

    def __init__(self, model: Any, tokens: Tokens, *, identity: str) -> None:
        """`model` is a causal language model of transformers, ready for inference."""
        self.identity = identity
        self._model, self._tokens = model, tokens
        self._stops = stop_ids(model, tokens)
        self._thread = thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-model")
        limits = {"max_items": _MAX_ROWS, "max_cost": _MAX_BATCH_TOKENS}
        self._generate: Batches[Start, list[int]] = Batches(self._continue_all, thread, **limits)
        self._score: Batches[list[Question], list[list[float]]] = Batches(self._ask_all, thread, **limits)
        self._likelihood: Batches[Answer, float] = Batches(self._read_all, thread, **limits)

    @classmethod
    def load(
        cls,
        checkpoint: str,
        engine: EngineSection,
        *,
        identity: str,
        revision: str | None = None,
        trust_remote_code: bool = False,
    ) -> LocalModel:
        """Return the model of a folder or hub id, on the GPU if there is one.

        Weights come from safetensors alone, and code that comes with them is not run unless asked for. Raises
        EngineError where the model cannot be loaded, UserError where it needs its own code or its tokenizer cannot be
        used.
        """
        disable_progress_bar()  # the run draws its own
        tokens = Tokens.load(checkpoint, revision, trust_remote_code=trust_remote_code)
        limits = [n for n in (tokens.max_len, engine.max_model_len) if n]
        tokens.max_len = min(limits) if limits else None
        device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = torch.bfloat16 if device == "cuda" or cpu_multiplies_bfloat16() else torch.float32
        is_folder = Path(checkpoint).is_dir()
        commit = None if is_folder else commit_of(checkpoint, revision)
        source = {"revision": commit, "trust_remote_code": trust_remote_code, "local_files_only": is_folder}
        try:
            with asked_for(checkpoint):
                model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, use_safetensors=True, **source)
            return cls(model.to(device).eval(), tokens, identity=identity)
        except (OSError, ValueError, torch.OutOfMemoryError) as error:
            raise EngineError(f"'{checkpoint}': transformers cannot load it ({error})") from error

    async def generate(self, request: Generate) -> Reply:
        """Return one continuation. Raises RejectedError where the prompt leaves no room in the context."""
        began, sampling = time.monotonic(), request.sampling
        ids = self._tokens.prompt_ids(request.turns, open_final=False)
        self._check_room(len(ids) + sampling.max_tokens)
        new = await self._generate.ask(sampling, len(ids) + sampling.max_tokens, Start(ids, request.seed))
        finish_reason = "stop" if new[-1] in self._stops else "length"
        reply = Reply(text=self._tokens.decode(new), finish_reason=finish_reason)
        return _signed(reply, len(ids), len(new), began)

    async def score(self, group: ScoreGroup, heard: Heard | None = None) -> list[Reply]:
        """Return one reply per tail. A tail that does not fit the context is invalid (`too_long`), not an error."""
        began = time.monotonic()
        split = self._tokens.split_ids(group.head, group.tails, group.options)
        prompts = split.whole()
        replies = [Reply(error="too_long") for _ in prompts]
        asked = {i: Question(ids, list(split.options[i])) for i, ids in enumerate(prompts) if self._fits(len(ids) + 1)}
        if asked:
            # Only within a group do prompts begin alike, so every group is a batch by itself.
            found = await self._score.ask("score", _MAX_BATCH_TOKENS, list(asked.values()))
            for i, logprobs in zip(asked, found, strict=True):
                replies[i] = _scored(dict(zip(group.options, logprobs, strict=True)))
        return [_signed(reply, len(ids), 1, began) for reply, ids in zip(replies, prompts, strict=True)]

    async def likelihood(self, request: Likelihood) -> Reply:
        """Return the log-likelihood of an answer. Raises RejectedError where it exceeds the context."""
        began = time.monotonic()
        prompt = self._tokens.prompt_ids(request.turns, open_final=False)
        answer = self._tokens.answer_ids(request.answer)
        ids = prompt + answer
        self._check_room(len(ids))
        logp = await self._likelihood.ask("likelihood", len(ids), Answer(ids, len(answer))) if answer else 0.0
        return _signed(Reply(logp=logp), len(prompt), len(answer), began)

    async def close(self) -> None:
        """Give the model's memory back once what is at work has ended. Nothing can be asked afterwards."""
        await asyncio.to_thread(self._thread.shutdown)
        self._model = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    # -- in the model's thread ---------------------------------------------------------------------------------------

    def _continue_all(self, sampling: Hashable, starts: Sequence[Start]) -> list[list[int]]:
        assert isinstance(sampling, Sampling)
        return _halving(lambda part: continue_all(self._model, part, sampling, self._stops), starts)

    def _ask_all(self, _: Hashable, groups: Sequence[list[Question]]) -> list[list[list[float]]]:
        (questions,) = groups
        n_rows = max(1, min(_MAX_ROWS, _MAX_BATCH_TOKENS // max(len(question.ids) for question in questions)))
        parts = [questions[i : i + n_rows] for i in range(0, len(questions), n_rows)]
        return [[row for part in parts for row in _halving(lambda p: option_logprobs(self._model, p), part)]]

    def _read_all(self, _: Hashable, answers: Sequence[Answer]) -> list[float]:
        return _halving(lambda part: answer_logprobs(self._model, part), answers)

    # -- does it fit -------------------------------------------------------------------------------------------------

    def _fits(self, n_tokens: int) -> bool:
        return self._tokens.max_len is None or n_tokens <= self._tokens.max_len

    def _check_room(self, n_tokens: int) -> None:
        if not self._fits(n_tokens):
            raise RejectedError(
                f"a prompt and its answer of {n_tokens} tokens exceed the context of {self._tokens.max_len} tokens; "
                "shorten the prompt, or raise engine.max_model_len if the model allows it"
            )


def stop_ids(model: Any, tokens: Tokens) -> frozenset[int]:
    """Return the tokens that end an answer, as the model's settings and its tokenizer name them."""
    named = model.generation_config.eos_token_id
    ids = named if isinstance(named, list) else [named]
    return frozenset(i for i in (*ids, tokens.end_id) if i is not None)


@torch.inference_mode()
def continue_all(model: Any, starts: Sequence[Start], sampling: Sampling, stops: frozenset[int]) -> list[list[int]]:
    """Return the new tokens of every row, 1 to `sampling.max_tokens`; a row that stopped ends with its stop token.

    Rows that have stopped are let go of as soon as they are half of the batch.
    """
    ids_BT, mask_BT = _left_padded([start.ids for start in starts], model.device)
    place_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    draws = [random.Random(start.seed) for start in starts]
    written: list[list[int]] = [[] for _ in starts]
    live, rows = set(range(len(starts))), list(range(len(starts)))
    for _ in range(sampling.max_tokens):
        logits_BV = _forward(model, ids_BT, mask_BT, place_BT, cache)[:, -1]
        u_B = torch.tensor([draws[row].random() for row in rows], dtype=torch.float64, device=model.device)
        next_B = pick(logits_BV, sampling, u_B)
        for row, token in zip(rows, next_B.tolist(), strict=True):
            if row in live:
                written[row].append(token)
                if token in stops:
                    live.discard(row)
        if not live:
            break
        ids_BT, place_BT = next_B[:, None], place_BT[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], dim=-1)
        if 2 * len(live) <= len(rows) and all(type(layer) in _LETS_GO for layer in cache.layers):
            left_B = torch.tensor([at for at, row in enumerate(rows) if row in live], device=model.device)
            cache.batch_select_indices(left_B)
            ids_BT, place_BT, mask_BT = ids_BT[left_B], place_BT[left_B], mask_BT[left_B]
            rows = [rows[at] for at in left_B.tolist()]
    return written


def pick(logits_BV: torch.Tensor, sampling: Sampling, u_B: torch.Tensor) -> torch.Tensor:
    """Return one token per row: the place in the row's cumulative distribution where `u_B` (in [0, 1)) falls.

    As in vLLM, temperature comes first, then `min_p`, then `top_p`; temperature 0 takes the likeliest token.
    """
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    p_BV = (logits_BV.double() / sampling.temperature).softmax(-1)
    if sampling.min_p > 0:
        p_BV = p_BV.where(p_BV >= sampling.min_p * p_BV.amax(-1, keepdim=True), 0.0)
    if sampling.top_p < 1:
        sorted_BV, order_BV = p_BV.sort(descending=True, stable=True)
        before_BV = sorted_BV.cumsum(-1) - sorted_BV
        kept_BV = sorted_BV.where(before_BV < sampling.top_p * p_BV.sum(-1, keepdim=True), 0.0)
        p_BV = torch.zeros_like(p_BV).scatter(-1, order_BV, kept_BV)
    sum_BV = p_BV.cumsum(-1)
    return torch.searchsorted(sum_BV, u_B[:, None] * sum_BV[:, -1:], right=True).clamp(max=p_BV.shape[-1] - 1)[:, 0]


@torch.inference_mode()
def option_logprobs(model: Any, questions: Sequence[Question]) -> list[list[float]]:
    """Return the log-probabilities (nats) of every question's options as next token.

    Tokens that all prompts begin with are read once.
    """
    prompts = [question.ids for question in questions]
    # At least one token of every prompt is left to read, since its logits are what is asked for.
    n_shared = min(len(commonprefix(prompts)), min(map(len, prompts)) - 1)
    n_shared = n_shared if len(prompts) > 1 and n_shared >= _LEAST_SHARED else 0
    cache = DynamicCache(config=model.config)
    if n_shared:
        shared_BT, ones_BT = _left_padded([prompts[0][:n_shared]], model.device)
        _forward(model, shared_BT, ones_BT, ones_BT.cumsum(-1) - 1, cache)
        cache.batch_repeat_interleave(len(prompts))
    ids_BT, mask_BT = _left_padded([ids[n_shared:] for ids in prompts], model.device)
    place_BT = (n_shared + mask_BT.cumsum(-1) - 1).clamp(min=0)
    mask_BT = torch.cat([mask_BT.new_ones(len(prompts), n_shared), mask_BT], dim=-1)
    logp_BV = _forward(model, ids_BT, mask_BT, place_BT, cache)[:, -1].double().log_softmax(-1).cpu()
    return [logp_V[question.option_ids].tolist() for logp_V, question in zip(logp_BV, questions, strict=True)]


@torch.inference_mode()
def answer_logprobs(model: Any, answers: Sequence[Answer]) -> list[float]:
    """Return the summed log-probability (nats) of every answer's tokens."""
    ids_BT, mask_BT = _left_padded([answer.ids for answer in answers], model.device)
    n_most = max(answer.n_answer for answer in answers)
    place_BT = (mask_BT.cumsum(-1) - 1).clamp(min=0)
    # Padding on the left lets all answers end in the same column, one after the last logits that tell of them.
    logits_BNV = _forward(model, ids_BT, mask_BT, place_BT, None, keep=n_most + 1)[:, :-1]
    found = []
    for answer, logits_NV in zip(answers, logits_BNV, strict=True):
        answer_N = torch.tensor(answer.ids[-answer.n_answer :], device=model.device)
        logp_NV = logits_NV[n_most - answer.n_answer :].double().log_softmax(-1)
        found.append(float(logp_NV.gather(-1, answer_N[:, None]).sum()))
    return found


def _forward(
    model: Any,
    ids_BT: torch.Tensor,
    mask_BT: torch.Tensor,
    place_BT: torch.Tensor,
    cache: DynamicCache | None,
    *,
    keep: int = 1,
) -> torch.Tensor:
    """Return the logits of the last `keep` columns; `mask_BT` also covers what the cache holds already."""
    out = model(
        input_ids=ids_BT,
        attention_mask=mask_BT,
        position_ids=place_BT,
        past_key_values=cache,
        use_cache=cache is not None,
        logits_to_keep=keep,
    )
    return out.logits[:, -keep:]


def _left_padded(rows: Sequence[Sequence[int]], device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the rows with zeros before the shorter ones, and the mask that tells them from tokens."""
    width = max(map(len, rows))
    ids_BT = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows], device=device)
    mask_BT = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=device)
    return ids_BT, mask_BT


def _halving(work: Any, items: Sequence[Any]) -> list[Any]:
    """Return `work(items)`; where memory does not suffice, of one half after the other."""
    try:
        return work(items)
    except torch.OutOfMemoryError as error:
        if len(items) == 1:
            raise EngineError("one request alone exceeds the memory; lower engine.max_model_len") from error
    torch.cuda.empty_cache()
    middle = len(items) // 2
    return _halving(work, items[:middle]) + _halving(work, items[middle:])


def _scored(logprobs: dict[str, float]) -> Reply:
    kept = {option: max(logp, LEAST_LOGPROB) for option, logp in logprobs.items()}
    return Reply(logprobs=kept, outside=max(0.0, 1.0 - math.fsum(map(math.exp, kept.values()))))


def _signed(reply: Reply, n_prompt: int, n_completion: int, began: float) -> Reply:
    reply.n_prompt, reply.n_completion = n_prompt, n_completion
    reply.road, reply.server, reply.duration_s = "transformers", "in-process", round(time.monotonic() - began, 4)
    return reply
