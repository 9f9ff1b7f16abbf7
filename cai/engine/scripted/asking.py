"""The three routes that ask the model: chat, completions, scoring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from zlib import crc32

import orjson

from cai.engine.bytetokens import VOCAB_SIZE, ByteTokenizer
from cai.engine.scripted import shapes
from cai.engine.scripted.asks import ApiError, chat_ask, check_length, completion_ask, prompt_of, prompts_of
from cai.engine.scripted.idlists import read_prompts, split_prompts
from cai.engine.scripted.model import FLOOR_LOGPROB, Ask, ScriptedModel, Written
from cai.engine.scripted.tally import Tally
from cai.engine.scripted.wire import Request

_TOKENIZER = ByteTokenizer()


@dataclass(frozen=True)
class Script:
    """How a scripted server behaves."""

    judge: str = "coherent"
    """The rule it judges by; see `--help`."""
    seed: int = 0
    """Changes every draw."""
    latency_ms: float = 0.0
    """Every reply of the model comes this much later."""
    jitter_ms: float = 0.0
    """And up to this much more, by hash of the request."""
    faults: str = ""
    """What goes wrong; see `--help`."""
    max_model_len: int = 16384
    """Context length, in tokens; a token is a byte."""
    models: tuple[str, ...] = ("scripted",)
    """Names it serves, alike in everything but their texts."""
    count_keys: bool = False
    """Whether /stats tells how often each request and each prompt came."""


@dataclass
class Asking:
    """The model behind its API: requests in, vLLM's replies out."""

    script: Script
    tally: Tally
    adapters: dict[str, str] = field(default_factory=dict)
    """LoRA adapters that were loaded: name and path."""

    def __post_init__(self) -> None:
        self._model = ScriptedModel(self.script.judge, self.script.seed)

    def chat(self, request: Request, kinds: frozenset[str]) -> dict[str, Any]:
        """Return the reply to `/v1/chat/completions`; `kinds` are the faults that befall it."""
        asked = fields_of(request)
        ask = chat_ask(asked, self.model_of(asked), self.script.max_model_len)
        prompt = rendered(asked).encode()
        samples = self._samples(prompt, len(prompt), ask, kinds)
        tokens = shapes.usage(len(prompt), sum(len(written.ids) for written in samples))
        return shapes.chat(_reply_id(request), ask, prompt, samples, tokens, asked, "nologprobs" in kinds)

    def complete(self, request: Request, kinds: frozenset[str]) -> dict[str, Any]:
        """Return the reply to `/v1/completions`."""
        asked, prompts = _completion_fields(request)
        ask = completion_ask(asked, self.model_of(asked), self.script.max_model_len)
        is_bare = "nologprobs" in kinds
        choices: list[dict[str, Any]] = []
        prompt_tokens = generated = 0
        for prompt, n_tokens in prompts:
            prompt_tokens += n_tokens
            for written in self._samples(prompt, n_tokens, ask, kinds):
                generated += len(written.ids)
                choices.append(shapes.completion_choice(len(choices), prompt, ask, written, asked, is_bare))
        return shapes.completion(_reply_id(request), ask.model, choices, shapes.usage(prompt_tokens, generated))

    def _samples(self, prompt: bytes, n_tokens: int, ask: Ask, kinds: frozenset[str]) -> list[Written]:
        check_length(n_tokens, self.script.max_model_len)
        tally = self.tally
        tally.prompts += 1
        tally.prompt_tokens += n_tokens
        if tally.asks is not None:
            tally.asks.add(repr(ask).encode(), prompt)
        if ask.max_tokens == 0:
            return [Written([], "", "length", None, [], False)] * ask.n
        room = self.script.max_model_len - n_tokens
        if room < 1:
            raise ApiError("max_tokens must be at least 1, got 0.", "max_tokens")
        if room < ask.max_tokens or "cut" in kinds:
            ask = ask._replace(max_tokens=min(room, ask.max_tokens), is_cut="cut" in kinds)
        samples = [self._model.write(prompt, ask, index) for index in range(ask.n)]
        for written in samples:
            tally.generated_tokens += len(written.ids)
            tally.judged += written.is_judgment
        return samples

    def score(self, request: Request, kinds: frozenset[str]) -> dict[str, Any]:
        """Return the reply to `/generative_scoring`."""
        asked = fields_of(request)
        ask = Ask(self.model_of(asked), 1, labels=_score_labels(asked))
        items = asked.get("items")
        if not isinstance(items, list) or not items:
            raise ApiError("items must contain at least one item.")
        query = prompt_of(asked.get("query"))
        scores, total = [], 0
        for item in items:
            parts = (prompt_of(item), query) if asked.get("item_first") else (query, prompt_of(item))
            text, n_tokens = parts[0][0] + parts[1][0], parts[0][1] + parts[1][1]
            # As vLLM does, without a word: what exceeds the context is cut off at the end.
            n_kept = min(n_tokens, self.script.max_model_len - 1)
            total += n_kept
            written = self._samples(text[:n_kept], n_kept, ask, kinds)[0]
            scores.append(_score_of(written.steps[0], ask.labels, asked.get("apply_softmax", True)))
        return shapes.scoring(_reply_id(request), ask.model, scores, total, "nologprobs" in kinds)

    def model_of(self, asked: Mapping[str, Any]) -> str:
        """Return the model that is asked: a served name, an adapter's, or by default the first."""
        name = asked.get("model")
        if name is None or name in self.script.models or name in self.adapters:
            return name or self.script.models[0]
        raise ApiError(
            f"The model `{name}` does not exist. Valid aliases: {', '.join(self.script.models)}.",
            "model", 404, "NotFoundError",
        )  # fmt: skip


def rendered(asked: Mapping[str, Any]) -> str:
    """Return the prompt that the messages of a request make."""
    messages = asked.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) and "role" in m for m in messages):
        raise ApiError("messages must be a list of objects with role and content.", "messages")
    return _TOKENIZER.render(
        messages,
        add_generation_prompt=asked.get("add_generation_prompt", True),
        continue_final_message=asked.get("continue_final_message", False),
    )


def _completion_fields(request: Request) -> tuple[dict[str, Any], list[tuple[bytes, int]]]:
    """Return the fields and the prompts of a `/v1/completions` request."""
    if split := split_prompts(request.body):
        try:
            return fields_of(request._replace(body=split[0])), read_prompts(split[1])
        except (ApiError, TypeError, ValueError):
            pass  # an id that is no byte, or no JSON at all: read again the plain way, which says what is wrong
    asked = fields_of(request)
    return asked, prompts_of(asked)


def _reply_id(request: Request) -> str:
    return f"{crc32(request.body):08x}"


def fields_of(request: Request) -> dict[str, Any]:
    """Return the request's JSON object, refused as vLLM refuses what is none."""
    if b"content-type: application/json" not in request.head:
        raise ApiError("Unsupported Media Type: Only 'application/json' is allowed", kind="Bad Request")
    try:
        asked = orjson.loads(request.body)
    except orjson.JSONDecodeError as error:
        raise ApiError(f"1 validation error:\n  JSON decode error: {error}", "body", kind="Bad Request") from None
    if not isinstance(asked, dict):
        raise ApiError("1 validation error:\n  the body is no JSON object", "body", kind="Bad Request")
    return asked


def _score_labels(asked: dict[str, Any]) -> tuple[int, ...]:
    labels = asked.get("label_token_ids")
    if not isinstance(labels, list) or not labels:
        raise ApiError("label_token_ids must contain at least one token ID.")
    for label in labels:
        if not isinstance(label, int) or not 0 <= label < VOCAB_SIZE:
            raise ApiError(
                f"label_token_id {label} is out of vocabulary range [0, {VOCAB_SIZE}). Please provide valid token IDs."
            )
    return tuple(labels)


def _score_of(step: dict[int, float], labels: tuple[int, ...], among_labels: bool) -> float:
    """Return the probability of the first label: among the labels, or among all tokens."""
    if not among_labels:
        return math.exp(step.get(labels[0], FLOOR_LOGPROB))
    top = max(step[label] for label in labels)
    weights = {label: math.exp(step[label] - top) for label in labels}
    return weights[labels[0]] / sum(weights.values())
