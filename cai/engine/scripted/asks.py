"""Requests as vLLM's API takes them, checked as vLLM checks them."""

from __future__ import annotations

from typing import Any

from cai.engine.bytetokens import END_OF_TEXT, VOCAB_SIZE
from cai.engine.scripted.model import Ask

MAX_LOGPROBS = 20
MAX_LABELS = 128
_COMPLETION_TOKENS = 16


class ApiError(Exception):
    """A request that vLLM would refuse, with the status, type and parameter it would name."""

    def __init__(
        self, message: str, param: str | None = None, status: int = 400, kind: str = "BadRequestError"
    ) -> None:
        super().__init__(message)
        self.body = {"error": {"message": message, "type": kind, "param": param, "code": status}}
        self.status = status


def whole(fields: dict[str, Any], name: str, default: int, low: int, high: int) -> int:
    """Return the field's integer; a missing or null one is `default`."""
    value = fields.get(name)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ApiError(f"{name} must be an integer in [{low}, {high}], got {value!r}.", name)
    return value


def completion_ask(fields: dict[str, Any], model: str, max_model_len: int) -> Ask:
    """Return the ask of a `/v1/completions` request."""
    labels = _labels(fields)
    top = _top(fields, "logprobs")
    if labels and top is None:
        raise ApiError("when using `logprob_token_ids`, `logprobs` must be set.", "logprob_token_ids")
    if labels and top != len(labels):
        raise ApiError(
            "When both logprobs and logprob_token_ids are set, logprobs must equal len(logprob_token_ids). "
            f"Got logprobs={top}, len(logprob_token_ids)={len(labels)}.",
            "logprob_token_ids",
        )
    least = 0 if fields.get("echo") else 1
    prompt_top = _top(fields, "prompt_logprobs")
    return _ask(fields, model, max_model_len, "max_tokens", _COMPLETION_TOKENS, least)._replace(
        top=top, labels=labels, prompt_top=top if prompt_top is None and fields.get("echo") else prompt_top
    )


def chat_ask(fields: dict[str, Any], model: str, max_model_len: int) -> Ask:
    """Return the ask of a `/v1/chat/completions` request."""
    labels = _labels(fields)
    wants = bool(fields.get("logprobs"))
    top = _top(fields, "top_logprobs")
    if labels and not wants:
        raise ApiError("when using `logprob_token_ids`, `logprobs` must be set to true.", "logprob_token_ids")
    if top and not wants:
        raise ApiError("when using `top_logprobs`, `logprobs` must be set to true.", "top_logprobs")
    name = "max_tokens" if fields.get("max_completion_tokens") is None else "max_completion_tokens"
    ask = _ask(fields, model, max_model_len, name, max_model_len, 1)
    return ask._replace(top=(top or 0) if wants else None, labels=labels, prompt_top=_top(fields, "prompt_logprobs"))


def _ask(fields: dict[str, Any], model: str, max_model_len: int, name: str, default: int, least: int) -> Ask:
    if fields.get("stream"):
        raise ApiError("the scripted server does not stream; leave `stream` out.", "stream")
    n = whole(fields, "n", 1, 1, 1024)
    temperature = fields.get("temperature")
    temperature = 1.0 if temperature is None else temperature
    if not isinstance(temperature, int | float) or not 0.0 <= temperature <= 2.0:
        raise ApiError(f"temperature must be in [0, 2], got {temperature}.", "temperature")
    if temperature == 0 and n > 1:
        raise ApiError(f"n must be 1 when using greedy sampling, got {n}.")
    max_tokens = fields.get(name)
    max_tokens = default if max_tokens is None else max_tokens
    if not isinstance(max_tokens, int) or max_tokens < least:
        raise ApiError(f"max_tokens must be at least 1, got {max_tokens}.", name)
    if max_tokens > max_model_len:
        raise ApiError(
            f"{name}={max_tokens} cannot be greater than max_model_len={max_model_len}. "
            "Please request fewer output tokens.",
            name,
        )
    seed = whole(fields, "seed", 0, -(2**63), 2**63 - 1)
    return Ask(model, max_tokens, float(temperature), seed, n, stop=_stops(fields))


def _stops(fields: dict[str, Any]) -> tuple[str, ...]:
    stops = fields.get("stop") or []
    stops = [stops] if isinstance(stops, str) else stops
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise ApiError("stop must be a string or a list of strings.", "stop")
    return tuple(stops)


def _labels(fields: dict[str, Any]) -> tuple[int, ...]:
    labels = fields.get("logprob_token_ids") or []
    if not isinstance(labels, list):
        raise ApiError("logprob_token_ids must be a list of integers.", "logprob_token_ids")
    if len(labels) > MAX_LABELS:
        raise ApiError(
            f"Requested logprob_token_ids of length {len(labels)}, which is greater than max allowed: {MAX_LABELS}",
            "logprob_token_ids",
        )
    outside = [label for label in labels if not isinstance(label, int) or not 0 <= label < VOCAB_SIZE]
    if outside:
        raise ApiError(
            f"token_id(s) {outside} in logprob_token_ids contain out-of-vocab token ids. Vocabulary size: {VOCAB_SIZE}",
            "logprob_token_ids",
        )
    return tuple(labels)


def _top(fields: dict[str, Any], name: str) -> int | None:
    value = fields.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise ApiError(f"`{name}` must be an integer.", name)
    if value < 0:
        raise ApiError(f"`{name}` must be a positive value or -1.", name)
    if value > MAX_LOGPROBS and not fields.get("logprob_token_ids"):
        raise ApiError(
            f"Requested sample logprobs of {value}, which is greater than max allowed: {MAX_LOGPROBS}", "logprobs"
        )
    return value


def prompts_of(fields: dict[str, Any]) -> list[tuple[bytes, int]]:
    """Return the prompts of a `/v1/completions` request, each as text bytes and token count."""
    prompt = fields.get("prompt")
    if isinstance(prompt, str) and prompt:
        return [prompt_of(prompt)]
    if not isinstance(prompt, list) or not prompt:
        raise ApiError("Either prompt or prompt_embeds must be provided and non-empty.", "prompt")
    if isinstance(prompt[0], int):
        return [prompt_of(prompt)]
    return [prompt_of(one) for one in prompt]


def prompt_of(prompt: Any) -> tuple[bytes, int]:
    """Return the text bytes and the token count of one prompt, given as text or as token ids."""
    if isinstance(prompt, str):
        text = prompt.encode()
        return text, len(text)
    try:
        return bytes(prompt), len(prompt)
    except (TypeError, ValueError):
        text = _with_specials(prompt)
        return text, len(prompt)


def _with_specials(ids: Any) -> bytes:
    """Return the text bytes of token ids among which not all are bytes."""
    if not isinstance(ids, list) or not all(isinstance(i, int) and i >= 0 for i in ids):
        raise ApiError("prompt must be a string, a list of strings, token ids or a list of token ids.", "prompt")
    if max(ids) >= VOCAB_SIZE:
        raise ApiError(f"Token id {max(ids)} is out of vocabulary")
    return bytes(i for i in ids if i < END_OF_TEXT)


def check_length(n_tokens: int, max_model_len: int) -> None:
    """Refuse a prompt that is empty or longer than the context."""
    if n_tokens == 0:
        raise ApiError("The decoder prompt cannot be empty")
    if n_tokens > max_model_len:
        raise ApiError(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains {n_tokens} "
            "input tokens, which exceeds this limit even without any output tokens. "
            "Please reduce the length of the input prompt.",
            "input_tokens",
        )
