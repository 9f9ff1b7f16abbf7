"""judge: every principle that applies, in both orders; one decision each.

In mode `logprob` the judge reads the pair once per order and is asked for the probability of the letters A and B
under every principle (Bai et al. 2022, §4.1). Mode `cot` lets it reason first and then asks for the letters in the
same conversation, so that a verdict is only ever read from the offered letters and never from running text. A
principle with a `check` is decided by code, once, since code has no favourite position.

A probability is mapped back from the letter to the source arm here and nowhere else.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from cai import canon, checks
from cai.config import JudgeSection
from cai.constitution import Principle
from cai.engine.model import Generate, Reply, Sampling, ScoreGroup
from cai.records import Comparison, Judgment, Order, Prompt, Question, Verdict
from cai.store.calls import Answer, Recorded
from cai.templates import Fence, Templates, Turn, neutralise, transcript

OPTIONS = ("A", "B")
ORDERS: tuple[Order, ...] = ("ab", "ba")
_PAIR = ("user_pair", "assistant_ready")
_ASK = ("user_principle", "assistant_verdict")


@dataclass(frozen=True)
class Bench:
    """What the judge needs beside the pair: the principles as they stand, the templates, the settings."""

    principles: tuple[Principle, ...]
    templates: Templates
    settings: JudgeSection
    fence: Fence
    judge_identity: str
    seed: int
    few_shot: str = ""

    def chosen(self, comparison: Comparison, domain: str) -> list[Principle]:
        """Return the principles asked about this comparison: all that apply, or a number drawn by hash."""
        able = [p for p in self.principles if p.applies_to(domain)]
        wanted = self.settings.principles
        if wanted == "all" or wanted >= len(able):
            return able
        drawn = sorted(able, key=lambda p: canon.unit_interval(self.seed, "judge", comparison.id, p.id))[:wanted]
        return [p for p in able if p in drawn]

    def question(self, principle: Principle) -> Question:
        """Return the principle as it is put to this judge."""
        return self._questions[principle.id]

    @cached_property
    def _questions(self) -> dict[str, Question]:
        return {p.id: self._question(p) for p in self.principles}

    def _question(self, principle: Principle) -> Question:
        if principle.check is not None:
            return Question(
                principle_id=principle.id,
                text_id=principle.id_of("check"),
                template_id="",
                mode="check",
                judge="code",
            )
        used = ["judgment"] if self.settings.mode == "logprob" else ["judgment", "reasoning"]
        return Question(
            principle_id=principle.id,
            text_id=principle.id_of("compare"),
            template_id=canon.content_id("templates", [self.templates[name].id for name in used]),
            mode=self.settings.mode,
            judge=self.judge_identity,
        )


async def judge(
    comparison: Comparison, prompt: Prompt, text_a: str, text_b: str, judge: Recorded, bench: Bench
) -> list[Judgment]:
    """Return the decisions on one comparison: checks first, then each order's principles."""
    principles = bench.chosen(comparison, prompt.domain)
    decided = [_by_check(comparison, bench.question(p), p, text_a, text_b) for p in principles if p.check is not None]
    asked = [p for p in principles if p.check is None]
    if asked:
        ask = _by_logprob if bench.settings.mode == "logprob" else _by_reasoning
        heads = [(order, _head(prompt, text_a, text_b, order, bench)) for order in ORDERS]
        answers = await asyncio.gather(*(ask(head, asked, comparison, order, judge, bench) for order, head in heads))
        for judgments in answers:
            decided += judgments
    return decided


def _by_check(comparison: Comparison, question: Question, principle: Principle, text_a: str, text_b: str) -> Judgment:
    p_a = checks.compare(principle.check, text_a, text_b)
    return Judgment(
        comparison_id=comparison.id,
        question_id=question.id,
        order="ab",
        call_key=None,
        reply_id=None,
        verdict=_winner(p_a, 0.0),
        p_a=p_a,
    )


def _head(prompt: Prompt, text_a: str, text_b: str, order: Order, bench: Bench) -> tuple[Turn, ...]:
    """Return the turns all principles share: the pair in this order, fenced."""
    first, second = (text_a, text_b) if order == "ab" else (text_b, text_a)
    return bench.templates["judgment"].turns(
        only=_PAIR,
        fence=bench.fence.of([*(m.content for m in prompt.messages), text_a, text_b]),
        conversation=transcript(prompt.messages),
        answer_a=neutralise(first),
        answer_b=neutralise(second),
        few_shot=bench.few_shot,
    )


async def _by_logprob(
    head: tuple[Turn, ...],
    principles: Sequence[Principle],
    comparison: Comparison,
    order: Order,
    judge: Recorded,
    bench: Bench,
) -> list[Judgment]:
    template = bench.templates["judgment"]
    tails = tuple(template.turns(only=_ASK, principle=p.compare) for p in principles)
    answers = await judge.score(ScoreGroup(head, tails, OPTIONS))
    return [
        read_verdict(comparison, bench.question(p), order, answer, bench.settings)
        for p, answer in zip(principles, answers, strict=True)
    ]


async def _by_reasoning(
    head: tuple[Turn, ...],
    principles: Sequence[Principle],
    comparison: Comparison,
    order: Order,
    judge: Recorded,
    bench: Bench,
) -> list[Judgment]:
    return list(await asyncio.gather(*(_reason_once(head, p, comparison, order, judge, bench) for p in principles)))


async def _reason_once(
    head: tuple[Turn, ...], principle: Principle, comparison: Comparison, order: Order, judge: Recorded, bench: Bench
) -> Judgment:
    cot, question = bench.settings.cot, bench.question(principle)
    asked = (*head, *bench.templates["reasoning"].turns(only=("user_principle",), principle=principle.compare))
    sampling = Sampling(max_tokens=cot.max_tokens, temperature=cot.temperature)
    drawn = canon.seed_of(bench.seed, "reason", comparison.id, principle.id, order)
    reasons = await judge.generate(Generate(asked, sampling, drawn))
    if reasons.reply.finish_reason == "length":
        return _unusable(comparison, question, order, reasons, "reasoning_cut")
    tail = (
        Turn("assistant", (reasons.reply.text or "").strip()),
        *bench.templates["reasoning"].turns(only=("user_verdict", "assistant_verdict"), principle=principle.compare),
    )
    answer = (await judge.score(ScoreGroup(asked, (tail,), OPTIONS)))[0]
    return read_verdict(comparison, question, order, answer, bench.settings, clamp=cot.clamp)


def read_verdict(
    comparison: Comparison,
    question: Question,
    order: Order,
    answer: Answer,
    settings: JudgeSection,
    *,
    clamp: tuple[float, float] | None = None,
) -> Judgment:
    """Return the judgment that a scored reply amounts to. A reply that cannot be read is invalid, never a tie."""
    reason = _why_invalid(answer.reply, settings.max_outside_mass)
    if reason is not None:
        return _unusable(comparison, question, order, answer, reason)
    p_first = _p_first(answer.reply.logprobs or {})
    if clamp is not None:
        p_first = min(max(p_first, clamp[0]), clamp[1])
    p_a = p_first if order == "ab" else 1 - p_first
    return Judgment(
        comparison_id=comparison.id,
        question_id=question.id,
        order=order,
        call_key=answer.key,
        reply_id=answer.reply_id,
        verdict=_winner(p_a, settings.tie_margin),
        p_a=p_a,
    )


def _why_invalid(reply: Reply, max_outside: float) -> str | None:
    if reply.error:
        return reply.error
    if not reply.logprobs or set(reply.logprobs) != set(OPTIONS):
        return "no_probabilities"
    if not all(math.isfinite(v) for v in reply.logprobs.values()):
        return "not_finite"
    if reply.outside is not None and reply.outside > max_outside:
        return "outside_options"
    return None


def _p_first(logprobs: dict[str, float]) -> float:
    """Return P(first option) among the options: a softmax over two, written so that it cannot overflow."""
    return 1 / (1 + math.exp(min(logprobs["B"] - logprobs["A"], 700.0)))


def _winner(p_a: float, tie_margin: float) -> Verdict:
    if abs(p_a - 0.5) <= tie_margin:
        return "tie"
    return "a" if p_a > 0.5 else "b"


def _unusable(comparison: Comparison, question: Question, order: Order, answer: Answer, reason: str) -> Judgment:
    return Judgment(
        comparison_id=comparison.id,
        question_id=question.id,
        order=order,
        call_key=answer.key,
        reply_id=answer.reply_id,
        verdict="refused" if reason == "refused" else "invalid",
        p_a=None,
        reason=reason,
    )
