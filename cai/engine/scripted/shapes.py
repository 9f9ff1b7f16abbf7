"""Replies in vLLM 0.32's shapes, nulls included."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cai.engine.bytetokens import END_OF_TEXT
from cai.engine.scripted.model import TOKEN_NAMES, TOKEN_TEXTS, Ask, Written, text_steps

CREATED = 1_735_689_600
"""Every reply's `created`, in seconds since 1970: the same request gets the same bytes at any time."""


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """Return the token counts."""
    return {
        "prompt_tokens": prompt_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "completion_tokens": completion_tokens,
        "prompt_tokens_details": None,
        "completion_tokens_details": None,
    }


def completion(reply_id: str, model: str, choices: list[dict[str, Any]], tokens: dict[str, Any]) -> dict[str, Any]:
    """Return the reply of `/v1/completions`."""
    return {
        "id": f"cmpl-{reply_id}",
        "object": "text_completion",
        "created": CREATED,
        "model": model,
        "choices": choices,
        "service_tier": None,
        "system_fingerprint": None,
        "usage": tokens,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def completion_choice(
    index: int, prompt: bytes, ask: Ask, written: Written, fields: dict[str, Any], is_bare: bool
) -> dict[str, Any]:
    """Return one choice of `/v1/completions`. `is_bare` leaves the log-probabilities out, as a fault."""
    names = TOKEN_NAMES if fields.get("return_tokens_as_token_ids") else TOKEN_TEXTS
    with_ids = fields.get("return_token_ids")
    ids, text, steps = written.ids, written.text, written.steps
    told: list[dict[int, float] | None] = list(steps)
    if fields.get("echo"):
        ids, text = [*prompt, *ids], prompt.decode(errors="replace") + text
        told = [*prompt_steps(prompt, ask), *steps]
    return {
        "index": index,
        "text": text,
        "logprobs": None if ask.top is None or is_bare else _completion_logprobs(ids, told, names),
        "finish_reason": written.finish_reason,
        "stop_reason": written.stop_reason,
        "token_ids": written.ids if with_ids else None,
        "prompt_logprobs": None if ask.prompt_top is None else prompt_logprobs(prompt, ask),
        "prompt_token_ids": list(prompt) if with_ids else None,
        "routed_experts": None,
    }


def _completion_logprobs(
    ids: Sequence[int], steps: Sequence[dict[int, float] | None], names: Sequence[str]
) -> dict[str, Any]:
    offsets, offset = [], 0
    for token in ids:
        offsets.append(offset)
        offset += len(names[token])
    return {
        "text_offset": offsets,
        "token_logprobs": [None if step is None else step[token] for token, step in zip(ids, steps, strict=True)],
        "tokens": [names[token] for token in ids],
        "top_logprobs": [
            None if step is None else {names[token]: logprob for token, logprob in step.items()} for step in steps
        ],
    }


def prompt_steps(prompt: bytes, ask: Ask) -> list[dict[int, float] | None]:
    """Return the log-probabilities of the prompt's own tokens; the first token has none."""
    return [None, *text_steps(ask.model, prompt[:1], list(prompt[1:]), ask.prompt_top)][: len(prompt)]


def prompt_logprobs(prompt: bytes, ask: Ask) -> list[dict[str, Any] | None]:
    """Return `prompt_logprobs`: per token its log-probability, rank and text, under its id."""
    return [
        step
        and {
            str(token): {"logprob": logprob, "rank": rank, "decoded_token": TOKEN_TEXTS[token]}
            for rank, (token, logprob) in enumerate(step.items(), 1)
        }
        for step in prompt_steps(prompt, ask)
    ]


def chat(
    reply_id: str,
    ask: Ask,
    prompt: bytes,
    samples: Sequence[Written],
    tokens: dict[str, Any],
    fields: dict[str, Any],
    is_bare: bool,
) -> dict[str, Any]:
    """Return the reply of `/v1/chat/completions`."""
    return {
        "id": f"chatcmpl-{reply_id}",
        "object": "chat.completion",
        "created": CREATED,
        "model": ask.model,
        "choices": [_chat_choice(i, ask, written, fields, is_bare) for i, written in enumerate(samples)],
        "service_tier": None,
        "system_fingerprint": None,
        "usage": tokens,
        "prompt_logprobs": None if ask.prompt_top is None else prompt_logprobs(prompt, ask),
        "prompt_token_ids": list(prompt) if fields.get("return_token_ids") else None,
        "prompt_text": None,
        "kv_transfer_params": None,
        "ec_transfer_params": None,
        "metrics": None,
    }


def _chat_choice(index: int, ask: Ask, written: Written, fields: dict[str, Any], is_bare: bool) -> dict[str, Any]:
    names = TOKEN_NAMES if fields.get("return_tokens_as_token_ids") else TOKEN_TEXTS
    return {
        "index": index,
        "message": {
            "role": "assistant",
            "content": written.text,
            "refusal": None,
            "annotations": None,
            "audio": None,
            "function_call": None,
            "reasoning": None,
        },
        "logprobs": None if ask.top is None or is_bare else {"content": _chat_logprobs(ask, written, names)},
        "finish_reason": written.finish_reason,
        "stop_reason": written.stop_reason,
        "token_ids": written.ids if fields.get("return_token_ids") else None,
        "routed_experts": None,
    }


def _chat_logprobs(ask: Ask, written: Written, names: Sequence[str]) -> list[dict[str, Any]]:
    return [
        _token(token, step[token], names)
        | {
            "top_logprobs": [
                _token(other, logprob, names)
                for rank, (other, logprob) in enumerate(step.items())
                if ask.labels or rank < (ask.top or 0)
            ]
        }
        for token, step in zip(written.ids, written.steps, strict=True)
    ]


def _token(token: int, logprob: float, names: Sequence[str]) -> dict[str, Any]:
    text = TOKEN_TEXTS[token] if token < END_OF_TEXT else ""
    return {"token": names[token], "logprob": logprob, "bytes": list(text.encode())}


def scoring(reply_id: str, model: str, scores: Sequence[float], prompt_tokens: int, is_bare: bool) -> dict[str, Any]:
    """Return the reply of `/generative_scoring`. `is_bare` leaves the scores out, as a fault."""
    return {
        "id": f"generative-scoring-{reply_id}",
        "object": "list",
        "created": CREATED,
        "model": model,
        "data": [
            {"index": i, "object": "score"} | ({} if is_bare else {"score": score}) for i, score in enumerate(scores)
        ],
        "usage": usage(prompt_tokens, len(scores)),
    }


def model_list(names: Sequence[str], adapters: dict[str, str], max_model_len: int) -> dict[str, Any]:
    """Return the reply of `/v1/models`: the served names, then the adapters as children of the first."""
    cards = [_card(name, name, None, max_model_len) for name in names]
    return {"object": "list", "data": cards + [_card(name, path, names[0], None) for name, path in adapters.items()]}


def _card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": CREATED,
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [],
    }
