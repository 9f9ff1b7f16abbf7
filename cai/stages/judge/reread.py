"""Reading a kept judgment again from the replies it names, without a model: the same functions, so the same verdict."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Sequence

from cai.config import JudgeSection
from cai.constitution import Principle
from cai.records import Comparison, Judgment, Part, Question
from cai.stages.judge.grades import by_rubric, by_scores
from cai.stages.judge.panel import decided
from cai.stages.judge.readings import Reading, as_part, mean_of, read_letters
from cai.stages.judge.reasons import read_sample
from cai.stages.judge.rewards import by_rewards
from cai.store.calls import Answer

_MEMBER = re.compile(r"(\d+) (\w+):")

Kept = Callable[[str], Answer]
"""Returns the kept answer of a request key. Raises KeyError where there is none."""


def reread(
    judgment: Judgment,
    comparison: Comparison,
    question: Question,
    settings: JudgeSection,
    kept: Kept,
    principle: Principle | None = None,
) -> Judgment:
    """Return the judgment that the kept replies amount to; equal to `judgment` where nothing was changed.

    `principle` is needed for the weights of a rubric. Flags are no part of a reply and are taken over. Raises KeyError
    where a reply is missing, ValueError for a mode that no reply decided (`check`).
    """
    reading = _reading(question.mode, judgment, judgment.parts, settings, kept, principle)
    return reading.judgment(comparison, question, judgment.order, settings.tie_margin, judgment.flag)


def _reading(
    mode: str,
    judgment: Judgment,
    parts: Sequence[Part],
    settings: JudgeSection,
    kept: Kept,
    principle: Principle | None,
) -> Reading:
    keys = [part.call_key or "" for part in parts] or [judgment.call_key or ""]
    if mode == "panel":
        return _panel(judgment, settings, kept, principle)
    if mode == "logprob":
        return read_letters(kept(keys[0]), judgment.order, settings, prior=judgment.prior)
    if mode == "cot":
        samples = [read_sample(kept(key), judgment.order, settings, judgment.prior) for key in keys]
        named = [as_part(part.name, sample) for part, sample in zip(parts, samples, strict=False)]
        return dataclasses.replace(mean_of(named), prior=judgment.prior) if named else samples[0]
    answers = [kept(key) for key in keys]
    if mode == "score":
        return by_scores(answers[0], answers[1], settings.max_outside_mass)
    if mode == "reward_model":
        return by_rewards(answers[0], answers[1])
    if mode == "rubric" and principle is not None:
        half, limit = len(answers) // 2, settings.max_outside_mass
        return by_rubric(principle, answers[:half], answers[half:], limit, [part.prior for part in parts[:half]])
    raise ValueError(f"mode '{mode}' is not read from replies")


def _panel(judgment: Judgment, settings: JudgeSection, kept: Kept, principle: Principle | None) -> Reading:
    members = [(part, match) for part in judgment.parts if (match := _MEMBER.match(part.name))]
    read = []
    for part, match in members:
        own = tuple(p for p in judgment.parts if p.name.startswith(f"{match[1]}/"))
        its = {"call_key": part.call_key, "reply_id": part.reply_id, "prior": part.prior}
        alone = judgment.model_copy(update=its)
        mode = "logprob" if match[2] == "rubric" and not own else match[2]
        read.append(as_part(part.name, _reading(mode, alone, own, settings, kept, principle)))
    whole = decided(read, settings)
    inner = [part for part in judgment.parts if not _MEMBER.match(part.name)]
    return Reading(whole.p_a, whole.reason, whole.call_key, whole.reply_id, (*whole.parts, *inner))
