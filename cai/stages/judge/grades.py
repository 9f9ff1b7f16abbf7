"""Modes `score` and `rubric`: each answer by itself, so that there is no position to favour.

`score` asks for one token of a scale and takes the expected value of its probabilities (as Lee et al. 2023, §2.2.2, do
for direct RLAIF; ours runs from 1 to 9, since 10 is two tokens in many tokenizers). `rubric` asks yes/no questions and
adds up weight times probability of yes (in the manner of rule-based rewards, Mu et al. 2024). Both bring an answer to a
place between 0 and 1; arm a is better with probability one half plus half the distance of the two places, so that
equal places are a tie. That is a graded preference and no calibrated probability: `cai judge bench` recalibrates.

Prior correction is that of `letters.py`, for the word yes: what a judge says of an answer without content is taken off
the log-odds of yes, per proposition. It falls on both answers alike, yet it does not cancel: a judge that says yes to
everything has little room left to tell two answers apart, and more of it under some propositions than under others.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence

from cai.constitution import Principle
from cai.engine.model import Reply, ScoreGroup
from cai.records import Order, Part
from cai.stages.judge.bench import Bench, Case, Seat
from cai.stages.judge.letters import CONTENT_FREE, content_free, leaning
from cai.stages.judge.readings import Reading, combined, commonest, logit_of, sigmoid, why_invalid
from cai.store.calls import Answer
from cai.templates import Turn

SCALE = tuple("123456789")
YES_NO = ("Yes", "No")


async def scores(case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench) -> list[Reading]:
    """Return one reading per principle from the expected scores; `order` plays no part."""
    ask = bench.templates["score"]
    tails = tuple(ask.turns(only=("user_principle", "assistant_score"), principle=p.compare) for p in principles)
    of_a, of_b = await _of_both("score", case, tails, SCALE, seat, bench)
    return [by_scores(a, b, bench.settings.max_outside_mass) for a, b in zip(of_a, of_b, strict=True)]


def by_scores(answer_a: Answer, answer_b: Answer, max_outside: float) -> Reading:
    """Return the preference between two graded answers."""
    parts = [_part(name, a, SCALE, expected, max_outside) for name, a in (("a", answer_a), ("b", answer_b))]
    return _preferred(parts, [place_of_score(p.value) for p in parts if p.value is not None])


async def rubrics(case: Case, order: Order, principles: Sequence[Principle], seat: Seat, bench: Bench) -> list[Reading]:
    """Return one reading per principle from its propositions; `order` plays no part."""
    asks = [proposition.ask for principle in principles for proposition in principle.rubric]
    priors = await priors_of(asks, seat, bench)
    of_a, of_b = await _of_both("rubric", case, _asking(asks, bench), YES_NO, seat, bench)
    found, start = [], 0
    for principle in principles:
        own = slice(start, start := start + len(principle.rubric))
        found.append(by_rubric(principle, of_a[own], of_b[own], bench.settings.max_outside_mass, priors[own]))
    return found


def _asking(asks: Sequence[str], bench: Bench) -> tuple[tuple[Turn, ...], ...]:
    blocks = ("user_question", "assistant_verdict")
    return tuple(bench.templates["rubric"].turns(only=blocks, question=ask) for ask in asks)


async def priors_of(asks: Sequence[str], seat: Seat, bench: Bench) -> list[float | None]:
    """Return the judge's leaning to yes on each proposition (nats); None where none is taken off."""
    if bench.settings.prior == "off":
        return [None] * len(asks)
    missing = list(dict.fromkeys(ask for ask in asks if ("rubric", seat.identity, ask) not in bench.learnt))
    if missing:
        assert seat.model is not None
        heads = [bench.answer_turns("rubric", content_free(text), text) for text in CONTENT_FREE]
        said = [await seat.model.score(ScoreGroup(head, _asking(missing, bench), YES_NO)) for head in heads]
        for ask, answers in zip(missing, zip(*said, strict=True), strict=True):
            bench.learnt["rubric", seat.identity, ask] = leaning(answers, bench, YES_NO)
    return [bench.learnt["rubric", seat.identity, ask] for ask in asks]


def by_rubric(
    principle: Principle,
    of_a: Sequence[Answer],
    of_b: Sequence[Answer],
    max_outside: float,
    priors: Sequence[float | None],
) -> Reading:
    """Return the preference between two answers of which every proposition was asked; `priors` (nats) are taken off."""
    weights = [proposition.weight for proposition in principle.rubric]
    parts = [
        _proposition(f"{arm}/{n}", answer, prior, max_outside)
        for arm, answers in (("a", of_a), ("b", of_b))
        for n, (answer, prior) in enumerate(zip(answers, priors, strict=True), 1)
    ]
    values = [part.value for part in parts if part.value is not None]
    if len(values) < len(parts):
        return _preferred(parts, [])
    n = len(weights)
    return _preferred(parts, [place_in_rubric(values[:n], weights), place_in_rubric(values[n:], weights)])


async def _of_both(
    template: str, case: Case, tails: tuple[tuple[Turn, ...], ...], options: Sequence[str], seat: Seat, bench: Bench
) -> list[list[Answer]]:
    assert seat.model is not None
    heads = [bench.answer_turns(template, case, text) for text in (case.text_a, case.text_b)]
    return list(await asyncio.gather(*(seat.model.score(ScoreGroup(h, tails, tuple(options))) for h in heads)))


def _part(
    name: str, answer: Answer, options: Sequence[str], value: Callable[[Reply], float], max_outside: float
) -> Part:
    reason = why_invalid(answer.reply, options, max_outside)
    read = None if reason else value(answer.reply)
    return Part(name=name, call_key=answer.key, reply_id=answer.reply_id, value=read, reason=reason)


def _proposition(name: str, answer: Answer, prior: float | None, max_outside: float) -> Part:
    read = _part(name, answer, YES_NO, lambda reply: p_yes(reply, prior), max_outside)
    return read.model_copy(update={"prior": prior})


def _preferred(parts: Sequence[Part], places: Sequence[float]) -> Reading:
    """Return the preference between two places; invalid where one of the answers could not be placed."""
    if len(places) < 2:
        return combined(parts, None, commonest(part.reason for part in parts))
    return combined(parts, 0.5 + (places[0] - places[1]) / 2)


def _shares(reply: Reply) -> dict[str, float]:
    masses = {option: math.exp(logp) for option, logp in (reply.logprobs or {}).items()}
    total = math.fsum(masses.values())
    return {option: mass / total for option, mass in masses.items()}


def expected(reply: Reply) -> float:
    """Return the expected score, 1 to 9."""
    return math.fsum(int(option) * share for option, share in _shares(reply).items())


def p_yes(reply: Reply, prior: float | None = None) -> float:
    """Return the probability of yes among yes and no, `prior` (nats) taken off its log-odds."""
    return sigmoid(logit_of(reply, YES_NO) - (prior or 0.0))


def place_of_score(score: float) -> float:
    """Return a score of 1 to 9 as a place between 0 and 1."""
    return min(1.0, max(0.0, (score - 1) / (len(SCALE) - 1)))


def place_in_rubric(yes: Sequence[float], weights: Sequence[float]) -> float:
    """Return the weighted sum of the probabilities of yes, brought to 0 (all against it) to 1 (all for it)."""
    worst = math.fsum(w for w in weights if w < 0)
    total = math.fsum(abs(w) for w in weights)
    place = (math.fsum(w * p for w, p in zip(weights, yes, strict=True)) - worst) / total
    return min(1.0, max(0.0, place))
