"""Reading what servers answer: generated text, probabilities of offered letters, likelihoods.

A reply that cannot be read becomes a Reply with `error` (an invalid judgment later), never a guess.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from cai.engine.model import Reply

LEAST_LOGPROB = -1e9
"""Stands for a probability of zero, since JSON has no infinity."""


class Unreadable(Exception):
    """An answer that lacks what was asked for; the message is a word to group by."""


def usage(answer: Any) -> dict[str, Any]:
    """Return the token counts of an answer as Reply fields."""
    said = answer.get("usage") if isinstance(answer, dict) else None
    if not isinstance(said, dict):
        return {}
    details = said.get("prompt_tokens_details") or {}
    return {
        "n_prompt": int(said.get("prompt_tokens") or 0),
        "n_completion": int(said.get("completion_tokens") or 0),
        "n_cached": details.get("cached_tokens"),
    }


def choices(answer: Any, n: int) -> list[dict[str, Any]]:
    """Return the `n` choices of an answer in order. Raises Unreadable where there are not as many."""
    found = answer.get("choices") if isinstance(answer, dict) else None
    if not isinstance(found, list) or len(found) != n or not all(isinstance(c, dict) for c in found):
        raise Unreadable("wrong_number_of_choices")
    return sorted(found, key=lambda c: c.get("index", 0))


def generated(choice: dict[str, Any]) -> Reply:
    """Return the text of one choice, from a completion or a chat completion."""
    text = choice["message"].get("content") if isinstance(choice.get("message"), dict) else choice.get("text")
    if not isinstance(text, str):
        return Reply(text="", finish_reason="error", error="no_text", raw=choice)
    return Reply(text=text, finish_reason=choice.get("finish_reason") or "unknown")


def scored_by_id(choice: dict[str, Any], option_ids: Sequence[int], options: Sequence[str]) -> Reply:
    """Return the options' log-probabilities from a completion's first token, asked for by token id.

    vLLM keys them `token_id:123` when asked with `return_tokens_as_token_ids`.
    """
    try:
        table = choice["logprobs"]["top_logprobs"][0]
        found = {option: float(table[f"token_id:{id_}"]) for option, id_ in zip(options, option_ids, strict=True)}
    except (KeyError, IndexError, TypeError, ValueError):
        return Reply(error="no_probabilities", raw=choice)
    return _scored(found)


def scored_by_text(choice: dict[str, Any], options: Sequence[str]) -> Reply:
    """Return the options' log-probabilities from a chat completion's first token, found by what the tokens spell.

    Tokens that spell the same option (`A`, ` A`) are added up. An option that is not among the listed tokens has at
    most the probability of the least likely token listed; it is given none.
    """
    try:
        listed = choice["logprobs"]["content"][0]["top_logprobs"]
        spelled = [(str(item["token"]).strip(" \n\"'(*_▁Ġ").rstrip(").:"), float(item["logprob"])) for item in listed]
    except (KeyError, IndexError, TypeError, ValueError):
        refusal = (choice.get("message") or {}).get("refusal") if isinstance(choice.get("message"), dict) else None
        return Reply(error="refused" if refusal else "no_probabilities", raw=choice)
    mass = {option: math.fsum(math.exp(lp) for token, lp in spelled if token == option) for option in options}
    if not any(mass.values()):
        return Reply(error="outside_options", raw=choice)
    return _scored({option: math.log(m) if m > 0 else LEAST_LOGPROB for option, m in mass.items()})


def _scored(logprobs: dict[str, float]) -> Reply:
    if any(math.isnan(v) or v > 1e-3 for v in logprobs.values()):
        return Reply(error="not_probabilities", raw={option: str(v) for option, v in logprobs.items()})
    kept = {option: max(v, LEAST_LOGPROB) for option, v in logprobs.items()}
    outside = max(0.0, 1 - math.fsum(math.exp(v) for v in kept.values()))
    return Reply(logprobs=kept, outside=outside)


def likelihood(choice: dict[str, Any], n_answer: int) -> Reply:
    """Return the summed log-likelihood of the last `n_answer` prompt tokens (vLLM's `prompt_logprobs`)."""
    table = choice.get("prompt_logprobs")
    if not isinstance(table, list) or len(table) < n_answer:
        return Reply(error="no_probabilities")
    try:
        total = math.fsum(_only(entry) for entry in table[len(table) - n_answer :])
    except (TypeError, ValueError, KeyError, AttributeError):
        return Reply(error="no_probabilities")
    return Reply(logp=total, n_completion=n_answer)


def _only(entry: dict[str, Any]) -> float:
    """Return the log-probability of the token that stands there: the entry's only one when none are asked beside it.

    With `prompt_logprobs: 0` vLLM lists the token itself; where the likeliest one is listed too, ours comes first.
    """
    return float(next(iter(entry.values()))["logprob"])
