"""The held-out answers of the first and the last policy, side by side, and what can be counted about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cai import checks, texts
from cai.constitution import Constitution, Principle
from cai.evaluate.intervals import Estimate, Statistic, difference, estimate, mean, ratio
from cai.records import Prompt, Response
from cai.trail import RunView

ARMS = ("before", "after")
"""The first policy's answers and the last one's; their phases are `evaluate/before` and `evaluate/after`."""

Measure = Callable[[Response], float]


@dataclass(frozen=True, slots=True)
class Answered:
    """One held-out prompt with the answers of both policies, sample by sample."""

    prompt: Prompt
    before: tuple[Response, ...]
    after: tuple[Response, ...]
    """As many as `before`, or none where the last policy has not answered."""


@dataclass(frozen=True, slots=True)
class Change:
    """A mean over the answers of each policy, and how it changed."""

    name: str
    title: str
    unit: str
    """`share`, or what is counted."""
    before: float | None
    after: float | None
    n_before: int
    """Answers behind `before`."""
    n_after: int
    difference: Estimate | None
    ratio: Estimate | None = None
    """After over before, for what is a length."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        plain = {name: getattr(self, name) for name in self.__slots__ if name not in ("difference", "ratio")}
        return plain | {
            "difference": self.difference.as_dict() if self.difference else None,
            "ratio": self.ratio.as_dict() if self.ratio else None,
        }


def read(run: RunView, phases: tuple[str, str] = ("evaluate/before", "evaluate/after")) -> list[Answered]:
    """Return the held-out prompts that were answered, in order, by the policies whose answers these phases keep.

    Once the last policy has answered any of them, only prompts and samples that both policies answered count, so that
    a change is never a change of prompts.
    """
    found = []
    for _, prompt in run.prompts("held_out"):
        arms = [_by_sample(run.records(phase, prompt.id).get("response", [])) for phase in phases]
        found.append((prompt, *arms))
    if not any(after for _, _, after in found):
        return [Answered(p, tuple(before[i] for i in sorted(before)), ()) for p, before, _ in found if before]
    answered = []
    for prompt, before, after in found:
        both = sorted(before.keys() & after.keys())
        if both:
            answered.append(Answered(prompt, tuple(before[i] for i in both), tuple(after[i] for i in both)))
    return answered


def _by_sample(responses: Sequence[Response]) -> dict[int, Response]:
    return {r.sample_index: r for r in responses}


def changes(answered: Sequence[Answered], *, seed: int) -> list[Change]:
    """Return length, cuts, refusals, openers, repetition and copies, before and after."""
    copies = _copies(answered)
    told: list[tuple[str, str, str, Measure]] = [
        ("words", "Length in words", "words", lambda r: checks.count_words(r.text)),
        ("tokens", "Length in tokens", "tokens", lambda r: r.n_tokens),
        ("cut", "Cut at the token limit", "share", lambda r: r.finish_reason == "length"),
        ("empty", "Empty", "share", lambda r: not r.text.strip()),
        ("refusal", "Refuses", "share", lambda r: texts.is_refusal(r.text)),
        ("opener", "Begins with a boilerplate opener", "share", lambda r: texts.has_boilerplate_opener(r.text)),
        ("repeats", "Repeats a run of four words", "share", lambda r: texts.repeated_share(r.text) > 0),
        ("repeated", "Runs of four words that repeat, per answer", "share", lambda r: texts.repeated_share(r.text)),
        ("copied", "Word for word an answer to another prompt", "share", lambda r: r.id in copies),
    ]
    return [
        change(name, title, unit, answered, measure, seed=seed, with_ratio=unit != "share")
        for name, title, unit, measure in told
    ]


def _copies(answered: Sequence[Answered]) -> set[str]:
    copies = set()
    for arm in ARMS:
        answers = [(a.prompt.id, r) for a in answered for r in getattr(a, arm)]
        marks = texts.copied((prompt_id, r.text) for prompt_id, r in answers)
        copies |= {r.id for (_, r), is_copy in zip(answers, marks, strict=True) if is_copy}
    return copies


def change(
    name: str,
    title: str,
    unit: str,
    answered: Sequence[Answered],
    measure: Callable[[Response], float],
    *,
    seed: int,
    with_ratio: bool = False,
) -> Change:
    """Return how the mean of `measure` over the answers changed, its interval clustered by prompt."""
    rows = [(*_sum(a.before, measure), *_sum(a.after, measure)) for a in answered]
    return Change(
        name=name,
        title=title,
        unit=unit,
        before=_mean_of(rows, 0),
        after=_mean_of(rows, 2),
        n_before=int(sum(row[1] for row in rows)),
        n_after=int(sum(row[3] for row in rows)),
        difference=_estimate(rows, difference, 0.0, seed),
        ratio=_estimate(rows, ratio, 1.0, seed) if with_ratio else None,
    )


def _sum(responses: Sequence[Response], measure: Measure) -> tuple[float, float]:
    return float(sum(measure(r) for r in responses)), float(len(responses))


def _mean_of(rows: Sequence[Sequence[float]], at: int) -> float | None:
    return mean([sum(row[at] for row in rows), sum(row[at + 1] for row in rows)])


def _estimate(rows: Sequence[Sequence[float]], statistic: Statistic, no_effect: float, seed: int) -> Estimate | None:
    return estimate(rows, statistic, no_effect=no_effect, seed=seed)


def pass_rates(answered: Sequence[Answered], constitution: Constitution, *, seed: int) -> list[Change]:
    """Return the pass rate of every programmatic principle, and of all of them together first.

    A principle is asked about the prompts of its domains only; an answer passes all if it passes every one that
    applies to its prompt. Empty where no principle has a check.
    """
    checked = [p for p in constitution.principles if p.check is not None]
    rates = [_rate(p.id, p.title, answered, [p], seed) for p in checked]
    if len(checked) > 1:
        rates.insert(0, _rate("all", "All programmatic principles", answered, checked, seed))
    return rates


def _rate(name: str, title: str, answered: Sequence[Answered], principles: Sequence[Principle], seed: int) -> Change:
    applying = {a.prompt.id: [p for p in principles if p.applies_to(a.prompt.domain)] for a in answered}
    asked = [a if applying[a.prompt.id] else Answered(a.prompt, (), ()) for a in answered]

    def passes(response: Response) -> bool:
        return n_kept(applying[response.prompt_id], response) == len(applying[response.prompt_id])

    return change(name, title, "share", asked, passes, seed=seed)


def n_kept(principles: Sequence[Principle], response: Response) -> int:
    """Return how many of these programmatic principles an answer keeps."""
    return sum(checks.run(p.check, response.text).passed for p in principles if p.check is not None)


def variety(answered: Sequence[Answered]) -> dict[str, Any]:
    """Return distinct-1 and distinct-2 of both policies' answers.

    Of every two answers to one prompt the longer is cut to the other's number of words, so that both sides are
    compared over equally many words about the same things.
    """
    after: list[list[str]] = []
    if any(a.after for a in answered):
        pairs = [(b.text, r.text) for a in answered for b, r in zip(a.before, a.after, strict=True)]
        before, after = texts.cut_alike(pairs)
    else:
        before = [texts.words(r.text) for a in answered for r in a.before]
    return {
        "n_words": sum(map(len, before)),
        **{f"distinct_{n}": {"before": texts.distinct(before, n), "after": texts.distinct(after, n)} for n in (1, 2)},
    }
