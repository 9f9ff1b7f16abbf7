"""The model that is none: what it writes and believes, as pure functions of the prompt, the ask and the seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import NamedTuple

from cai.engine.bytetokens import END_OF_TEXT, VOCAB_SIZE
from cai.engine.scripted import prose
from cai.engine.scripted.reading import Comparison, fenced_answer, offered, read_comparison, task_of
from cai.engine.scripted.rules import attentive, draws, parse_rule

FLOOR_LOGPROB = -20.0
"""Log-probability (nats) of a token that the scripted model does not think of at all."""

_FLOOR = math.exp(FLOOR_LOGPROB)

TOKEN_TEXTS = tuple(bytes([i]).decode(errors="replace") for i in range(END_OF_TEXT)) + ("<|endoftext|>",)
TOKEN_NAMES = tuple(f"token_id:{i}" for i in range(VOCAB_SIZE))

_A, _B = b"AB"
_LOWER = frozenset(b"ab")
_DIGITS = frozenset(b"123456789")
_OTHERS = tuple(b"\nT*(")
"""Tokens that are always there to be less likely than the one that was meant."""


class Ask(NamedTuple):
    """What a request wants from each prompt. Field names are those of the API unless a comment says otherwise."""

    model: str
    max_tokens: int
    temperature: float = 1.0
    seed: int = 0
    n: int = 1
    top: int | None = None
    """Log-probabilities per position; None for none."""
    labels: tuple[int, ...] = ()
    """`logprob_token_ids`."""
    stop: tuple[str, ...] = ()
    prompt_top: int | None = None
    """`prompt_logprobs`; None for none."""
    is_cut: bool = False
    """Whether a fault cuts the text in half."""


class Written(NamedTuple):
    """One sample."""

    ids: list[int]
    """The tokens, the end of text included where it was reached."""
    text: str
    finish_reason: str
    stop_reason: str | None
    steps: list[dict[int, float]]
    """Per token the log-probabilities (nats), the sampled one first; empty where none were asked for."""
    is_judgment: bool


class ScriptedModel:
    """Answers every prompt by rule. The same prompt, ask and seed always give the same sample."""

    def __init__(self, judge: str = "coherent", seed: int = 0) -> None:
        self.rule = attentive(judge, parse_rule(judge, seed))
        self._seed = b"%d" % seed

    def write(self, prompt: bytes, ask: Ask, index: int = 0) -> Written:
        """Return sample `index` for `prompt`."""
        if ask.labels or ask.max_tokens == 1:
            comparison = read_comparison(prompt)
            labels = ask.labels or (() if comparison else offered(prompt))
            if labels or comparison:
                return self._choose(prompt, self.believe(prompt, comparison, labels), ask, index)
        return self._tell(prompt, ask, index)

    def believe(self, prompt: bytes, comparison: Comparison | None, labels: Sequence[int]) -> dict[int, float]:
        """Return the probabilities of the next token, likeliest options included; unnamed tokens have next to none."""
        if comparison is None:
            comparison = Comparison(fenced_answer(prompt) or prompt, b"", b"")
        verdict = self.rule(comparison)
        outside = verdict.outside
        masses = {
            ord("\n"): outside * 0.2,
            ord("T"): outside * 0.1,
            ord("*"): outside * 0.06,
            ord("("): outside * 0.04,
            verdict.lead: outside * 0.6,
        }
        inside = 1.0 - outside
        if labels and _DIGITS.issuperset(labels):
            masses.update(_scale(labels, verdict.p_a, inside))
            return masses
        first, second = _two(labels)
        masses[first] = inside * verdict.p_a
        masses[second] = inside * (1.0 - verdict.p_a)
        return masses

    def _choose(self, prompt: bytes, masses: dict[int, float], ask: Ask, index: int) -> Written:
        token = self._sampled(masses, prompt, ask, index)
        steps = [_step(masses, token, ask)] if ask.top is not None or ask.labels else []
        if ask.max_tokens == 1:
            return Written([token], TOKEN_TEXTS[token], "length", None, steps, True)
        if steps:
            steps.append(_certain(END_OF_TEXT, ask))
        return Written([token, END_OF_TEXT], TOKEN_TEXTS[token], "stop", None, steps, True)

    def _sampled(self, masses: dict[int, float], prompt: bytes, ask: Ask, index: int) -> int:
        if ask.temperature == 0.0:
            return max(masses, key=masses.__getitem__)
        left = draws(self._seed, b"%d %d" % (ask.seed, index), prompt)[0] * sum(masses.values())
        for token, mass in masses.items():
            left -= mass
            if left < 0.0:
                return token
        return max(masses, key=masses.__getitem__)

    def _tell(self, prompt: bytes, ask: Ask, index: int) -> Written:
        text = self._text(prompt, self._chance(prompt, ask, index))
        text, stop_reason = _stopped(text, ask.stop)
        ids = list(text.encode())
        limit = min(ask.max_tokens, max(1, len(ids) // 2)) if ask.is_cut else ask.max_tokens
        finish_reason = "stop"
        if len(ids) >= limit:
            ids = ids[:limit]
            text, stop_reason, finish_reason = bytes(ids).decode(errors="replace"), None, "length"
        elif stop_reason is None:
            ids.append(END_OF_TEXT)
        steps = text_steps(ask.model, prompt[-1:], ids, ask.top) if ask.top is not None else []
        return Written(ids, text, finish_reason, stop_reason, steps, False)

    def _chance(self, prompt: bytes, ask: Ask, index: int) -> Random:
        """Return the sample's own random numbers. A greedy one does not depend on seed and index."""
        sample = b"greedy" if ask.temperature == 0.0 else b"%d %d" % (ask.seed, index)
        high, low = draws(self._seed, ask.model.encode(), sample, prompt)
        return Random(int(high * 2**32) << 32 | int(low * 2**32))

    def _text(self, prompt: bytes, rng: Random) -> str:
        task = task_of(prompt)
        if task == "critique":
            return prose.critique(rng)
        if task == "revise":
            return prose.revision(prompt, rng)
        if task == "compare" and (comparison := read_comparison(prompt)):
            return prose.reasoning(self.rule(comparison), rng)
        return prose.answer(prompt, rng)


def _two(labels: Sequence[int]) -> tuple[int, int]:
    """Return the tokens that stand for the first and the second answer among the offered ones."""
    if not labels or _A in labels or _B in labels:
        return _A, _B
    if not _LOWER.isdisjoint(labels):
        return ord("a"), ord("b")
    return labels[0], labels[1] if len(labels) > 1 else ord(" ")


def _scale(labels: Sequence[int], quality: float, inside: float) -> dict[int, float]:
    """Return masses over digit tokens that peak at `quality` (0 to 1) of the way from 1 to 9."""
    peak = 1.0 + 8.0 * quality
    weights = {label: math.exp(-abs(label - ord("0") - peak)) for label in labels}
    total = sum(weights.values())
    return {label: inside * weight / total for label, weight in weights.items()}


def _log(mass: float) -> float:
    return math.log(mass) if mass > _FLOOR else FLOOR_LOGPROB


def _step(masses: dict[int, float], token: int, ask: Ask) -> dict[int, float]:
    """Return the log-probabilities of one position in vLLM's order: the sampled token, then the labels or the top."""
    step = {token: _log(masses.get(token, 0.0))}
    if ask.labels:
        for label in ask.labels:
            step[label] = _log(masses.get(label, 0.0))
        return step
    for other in sorted(masses, key=masses.__getitem__, reverse=True)[: ask.top]:
        step[other] = _log(masses[other])
    return step


def _certain(token: int, ask: Ask) -> dict[int, float]:
    """Return the position of a token that nothing competes with."""
    others = ask.labels or _OTHERS[: ask.top]
    return {token: -1e-6} | {other: FLOOR_LOGPROB for other in others if other != token}


def _stopped(text: str, stops: Sequence[str]) -> tuple[str, str | None]:
    """Return `text` up to the first stop string, and that string."""
    found = [(at, stop) for stop in stops if stop and (at := text.find(stop)) >= 0]
    return (text[: min(found)[0]], min(found)[1]) if found else (text, None)


@lru_cache(maxsize=64)
def _surprises(model: str) -> tuple[float, ...]:
    """Return 256 log-probabilities (nats) that are this model's own, so that two models differ on the same text."""
    return tuple(-0.05 - 1.5 * draws(b"surprise", model.encode(), b"%d" % i)[0] for i in range(256))


def text_steps(model: str, before: bytes, ids: Sequence[int], top: int | None) -> list[dict[int, float]]:
    """Return per token after `before` its log-probability under `model` and those of `top` less likely ones."""
    previous = before[-1] if before else 0
    table = _surprises(model)
    steps = []
    for token in ids:
        logprob = table[(previous * 31 + token) & 255]
        others = {other: logprob - 1.0 - i for i, other in enumerate(_OTHERS) if other != token and i < (top or 0)}
        steps.append({token: logprob} | others)
        previous = token
    return steps
