"""What the judge needs beside the pair: the principles, the templates, the settings, and who sits on a panel."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from cai import canon
from cai.config import JudgeSection
from cai.constitution import Principle
from cai.records import Comparison, Order, Prompt, Question
from cai.stages.settle import Asked
from cai.store.calls import Recorded
from cai.templates import Fence, Templates, Turn, neutralise, transcript

OPTIONS = ("A", "B")
ORDERS: tuple[Order, ...] = ("ab", "ba")

_PAIR = ("user_pair", "assistant_ready")
_ASK = ("user_principle", "assistant_verdict")
_ANSWER = ("user_answer", "assistant_ready")
_TEMPLATES = {
    "logprob": ("judgment",),
    "cot": ("judgment", "reasoning"),
    "score": ("score",),
    "rubric": ("rubric",),
    "reward_model": (),
}
ORDERED_MODES = ("logprob", "cot")
"""Modes that read the pair, one answer before the other; in the others there is no position to favour."""


class Case(NamedTuple):
    """One comparison with its texts."""

    comparison: Comparison
    prompt: Prompt
    text_a: str
    text_b: str


@dataclass(frozen=True)
class Seat:
    """One judge at the bench."""

    mode: str
    """How it judges: a mode other than `panel` and `check`."""
    identity: str
    """Who it is: name and revision of its model."""
    model: Recorded | None = None
    """What it asks; None where judgments are only read."""

    def mode_for(self, principle: Principle) -> str:
        """Return how it judges a principle: one without a rubric has nothing to ask but `compare`."""
        return "logprob" if self.mode == "rubric" and not principle.rubric else self.mode


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
    few_shot_id: str | None = None
    """Content id of the worked examples where judgments are only read; None takes that of `few_shot`."""
    seats: tuple[Seat, ...] = ()
    """The members of a panel, or the reward model; empty where the run's judge judges alone."""
    learnt: dict[Any, float | None] = field(default_factory=dict, compare=False, repr=False)
    """What pairs without content have taught of each judge: its leaning to a letter under each principle (nats), and
    whether it can read canaries."""

    def chosen(self, comparison: Comparison, domain: str) -> list[Principle]:
        """Return the principles asked about this comparison: all that apply, or a number drawn by hash."""
        able = self.able(domain)
        wanted = self.settings.principles
        if wanted == "all" or wanted >= len(able):
            return able
        drawn = sorted(able, key=lambda p: canon.unit_interval(self.seed, "judge", comparison.id, p.id))[:wanted]
        return [p for p in able if p in drawn]

    def able(self, domain: str) -> list[Principle]:
        """Return the principles that apply to a domain."""
        if domain not in self._by_domain:
            self._by_domain[domain] = [p for p in self.principles if p.applies_to(domain)]
        return self._by_domain[domain]

    @cached_property
    def _by_domain(self) -> dict[str, list[Principle]]:
        return {}

    def due(self, comparison: Comparison, domain: str) -> dict[str, Asked]:
        """Return the questions due on a comparison, by their ids."""
        return dict(self._due[p.id] for p in self.chosen(comparison, domain))

    @cached_property
    def _due(self) -> dict[str, tuple[str, Asked]]:
        asked = {p.id: Asked(p.id, p.weight, self.orders(p)) for p in self.principles}
        return {p.id: (self.question(p).id, asked[p.id]) for p in self.principles}

    def seated(self, judge: Recorded | None) -> tuple[Seat, ...]:
        """Return the judges that sit: those of the config, or the run's judge alone."""
        return self.seats or (Seat(self.settings.mode, self.judge_identity, judge),)

    def orders(self, principle: Principle) -> tuple[Order, ...]:
        """Return the orders in which a principle is judged: both, or one where position plays no part."""
        if principle.check is not None:
            return ORDERS[:1]
        return ORDERS if any(s.mode_for(principle) in ORDERED_MODES for s in self.seated(None)) else ORDERS[:1]

    def question(self, principle: Principle) -> Question:
        """Return the principle as it is put to this judge."""
        return self._questions[principle.id]

    def ask(self, principle: Principle) -> tuple[Turn, ...]:
        """Return the turns that ask for the letter under one principle, the same ones every time."""
        if principle.id not in self._asked:
            self._asked[principle.id] = self.templates["judgment"].turns(only=_ASK, principle=principle.compare)
        return self._asked[principle.id]

    @cached_property
    def _asked(self) -> dict[str, tuple[Turn, ...]]:
        return {}

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
                settings_id="",
            )
        seats = self.seated(None)
        modes = [seat.mode_for(principle) for seat in seats]
        used = list(dict.fromkeys(name for mode in modes for name in _TEMPLATES[mode]))
        read = {mode: principle.id_of("rubric" if mode == "rubric" else "compare") for mode in modes}
        return Question(
            principle_id=principle.id,
            text_id=_together("texts", list(dict.fromkeys(v for m, v in read.items() if m != "reward_model"))),
            template_id=canon.content_id("templates", [self.templates[name].id for name in used]) if used else "",
            mode="panel" if self.settings.mode == "panel" else modes[0],
            judge=self.judges,
            settings_id=self.settings_id,
        )

    @cached_property
    def settings_id(self) -> str:
        """Content id of what decides how replies are read, and of what is asked beside the texts and templates."""
        used = self.settings.model_dump(mode="json", include={"tie_margin", "max_outside_mass", "prior", "canary"})
        used["few_shot"] = text_id_of(self.few_shot) if self.few_shot_id is None else self.few_shot_id
        if any(seat.mode == "cot" for seat in self.seated(None)):
            used |= {"cot": self.settings.cot.model_dump(mode="json"), "seed": self.seed}
        return canon.content_id("judge settings", used)

    def by_letters(self, principles: Sequence[Principle]) -> bool:
        """Return whether a judge by rubrics is asked for letters by some of these principles, which have none."""
        without = any(p.check is None and not p.rubric for p in principles)
        return without and any(seat.mode == "rubric" for seat in self.seated(None))

    @property
    def judges(self) -> str:
        """Who judges, in words."""
        return judges_in_words(self.settings, [(seat.mode, seat.identity) for seat in self.seats], self.judge_identity)

    # -- the shared beginning of what is asked ------------------------------------------------------------------------

    def pair_turns(self, case: Case, order: Order) -> tuple[Turn, ...]:
        """Return the turns all principles share: the pair in this order, fenced."""
        first, second = (case.text_a, case.text_b) if order == "ab" else (case.text_b, case.text_a)
        return self.templates["judgment"].turns(
            only=_PAIR,
            fence=self._fence(case),
            conversation=transcript(case.prompt.messages),
            answer_a=neutralise(first),
            answer_b=neutralise(second),
            few_shot=self.few_shot,
        )

    def answer_turns(self, template: str, case: Case, text: str) -> tuple[Turn, ...]:
        """Return the turns all questions about one answer share: the answer, fenced."""
        return self.templates[template].turns(
            only=_ANSWER,
            fence=self._fence(case),
            conversation=transcript(case.prompt.messages),
            answer=neutralise(text),
            few_shot=self.few_shot,
        )

    def _fence(self, case: Case) -> str:
        return self.fence.of([*(m.content for m in case.prompt.messages), case.text_a, case.text_b])


def text_id_of(few_shot: str) -> str:
    """Return the content id of worked examples; empty where there are none."""
    return canon.text_id(few_shot) if few_shot else ""


def judges_in_words(settings: JudgeSection, seats: Sequence[Sequence[str]], alone: str) -> str:
    """Return who judges: the only judge, or a panel's rule and members; `seats` are (mode, identity)."""
    if settings.mode != "panel":
        return seats[0][1] if seats else alone
    return f"{settings.panel.rule} of " + " + ".join(f"{mode}:{identity}" for mode, identity in seats)


def _together(tag: str, ids: list[str]) -> str:
    """Return the one id there is, none of none, or an id of several."""
    return ids[0] if len(ids) == 1 else canon.content_id(tag, ids) if ids else ""
