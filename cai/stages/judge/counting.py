"""How many requests judging takes, counted without asking. What comes out as the same request is asked once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cai.config import JudgeSection
from cai.constitution import Principle
from cai.stages.judge.bench import ORDERED_MODES, Seat
from cai.stages.judge.letters import CONTENT_FREE


class Question(NamedTuple):
    """What one judge is asked under one principle, whatever the pair."""

    judge: str
    mode: str
    text: str
    """What makes it this question: the text that is put, or the principle whose id decides how reasons are drawn."""


class Calls(NamedTuple):
    """The requests that one comparison takes."""

    read: int
    """For probabilities, asked in any case."""
    written: int
    """For reasons."""
    after_reasons: int
    """For probabilities after reasons: one for each that ended by itself."""
    reward_models: int
    """Reward models, each of which scores either answer once, in however many comparisons it stands."""

    @property
    def least(self) -> int:
        """Requests in any case, rewards aside."""
        return self.read + self.written

    @property
    def most(self) -> int:
        """Requests where all reasons end by themselves, rewards aside."""
        return self.least + self.after_reasons


def calls_of(principles: Sequence[Principle], seats: Sequence[Seat], settings: JudgeSection) -> Calls:
    """Return what one comparison takes under these principles."""
    judged = [p for p in principles if p.check is None]
    questions = {q for p in judged for seat in seats for q in _questions(p, seat)}
    n_reasons = sum(q.mode == "cot" for q in questions)
    written = 2 * n_reasons * settings.cot.samples  # two orders, or two answers
    rewards = {seat.identity for seat in seats if seat.mode == "reward_model"} if judged else ()
    return Calls(2 * (len(questions) - n_reasons), written, written, len(rewards))


def _questions(principle: Principle, seat: Seat) -> Iterator[Question]:
    mode = seat.mode_for(principle)
    if mode == "rubric":
        yield from (Question(seat.identity, mode, proposition.ask) for proposition in principle.rubric)
    elif mode != "reward_model":
        yield Question(seat.identity, mode, principle.id if mode == "cot" else principle.compare)


def content_free_of(principles: Sequence[Principle], seats: Sequence[Seat], settings: JudgeSection) -> set[Question]:
    """Return the questions whose leaning to a letter is estimated on pairs without content, once in a run."""
    if settings.prior == "off":
        return set()
    judged = ((p, seat, seat.mode_for(p)) for p in principles if p.check is None for seat in seats)
    return {Question(seat.identity, mode, text) for p, seat, mode in judged for text in _learnt(p, mode)}


def _learnt(principle: Principle, mode: str) -> list[str]:
    """Return the texts of which a mode learns how the judge leans."""
    if mode == "rubric":
        return [proposition.ask for proposition in principle.rubric]
    return [principle.compare] if mode in ORDERED_MODES else []


def calls_of_content_free(question: Question) -> tuple[int, int]:
    """Return how many requests the estimate of one leaning takes at least and at most."""
    n = len(CONTENT_FREE)
    return n, 2 * n if question.mode == "cot" else n


def canary_readers(seats: Sequence[Seat], settings: JudgeSection) -> set[str]:
    """Return the judges to whom canaries are put, as many per comparison as there are orders."""
    return {seat.identity for seat in seats if seat.mode in ORDERED_MODES} if settings.canary else set()
