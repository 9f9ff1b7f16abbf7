"""admit: from a settled comparison and its texts to a training row, or the reason why there is none."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import re2

from cai import canon
from cai.config import PairsSection
from cai.records import STATES, Comparison, PreferencePair, Prompt, State
from cai.stages.settle import Settled


@dataclass(frozen=True, slots=True)
class Arms:
    """The two answers of a comparison."""

    text_a: str
    text_b: str
    cut_a: bool
    """Whether arm a was cut at the token limit."""
    cut_b: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """Where a comparison ended for good."""

    state: State
    reason: str | None
    """The filter's name where state is `filtered`."""
    pair: PreferencePair | None


@dataclass
class Accounting:
    """Every comparison in exactly one state. `check` asserts that they add up."""

    comparisons: int = 0
    states: Counter[str] = field(default_factory=Counter)
    filtered: Counter[str] = field(default_factory=Counter)
    rows: int = 0

    def count(self, admission: Admission) -> None:
        """Count one comparison's end."""
        self.comparisons += 1
        self.states[admission.state] += 1
        self.rows += admission.pair is not None
        if admission.state == "filtered":
            self.filtered[admission.reason] += 1

    def as_dict(self) -> dict[str, object]:
        """Return the counts, every state named, and assert that they add up to the comparisons made."""
        states = {state: self.states[state] for state in STATES}
        if sum(states.values()) != self.comparisons:
            raise AssertionError(f"accounting does not add up: {states} against {self.comparisons} comparisons")
        filtered = dict(sorted(self.filtered.items()))
        return {"comparisons": self.comparisons, **states, "filtered_by": filtered, "rows": self.rows}


class Gate:
    """Applies the filters of a config in order; remembers rows so that a duplicate is filtered."""

    def __init__(self, rules: PairsSection) -> None:
        self._rules = rules
        self._boilerplate = [re2.compile(pattern) for pattern in rules.boilerplate]
        self._seen: set[bytes] = set()

    def admit(self, settled: Settled, comparison: Comparison, prompt: Prompt, arms: Arms) -> Admission:
        """Return where the comparison ends and, if it is to be trained on, its row."""
        if settled.state in ("failed", "refused", "invalid", "abstained"):
            return Admission(settled.state, None, None)
        if settled.label == "tie" and self._rules.ties == "drop":
            # A person's tie stays counted as overridden: the precedence puts a person's word first.
            return Admission("overridden" if settled.state == "overridden" else "tied", None, None)
        pair = _pair(settled, comparison, prompt, arms)
        reason = self._why_filtered(settled, pair, arms)
        if settled.state == "overridden":
            return Admission("overridden", reason, None if reason else pair)
        if reason:
            return Admission("filtered", reason, None)
        return Admission(settled.state, None, pair)

    def _why_filtered(self, settled: Settled, pair: PreferencePair, arms: Arms) -> str | None:
        rules, a_wins = self._rules, settled.label != "b"
        if arms.text_a.strip() == arms.text_b.strip():
            return "identical"
        if not pair.chosen.strip() or not pair.rejected.strip():
            return "empty"
        if rules.drop_cut and (arms.cut_a if a_wins else arms.cut_b):
            return "cut"
        if pair.confidence < rules.min_confidence:
            return "low_confidence"
        if rules.max_words is not None and len(pair.chosen.split()) > rules.max_words:
            return "too_long"
        if any(pattern.search(pair.chosen) for pattern in self._boilerplate):
            return "boilerplate"
        return self._why_duplicate(pair)

    def _why_duplicate(self, pair: PreferencePair) -> str | None:
        text = canon.dumps([[m.model_dump() for m in pair.prompt], pair.chosen, pair.rejected])
        row = canon.digest(text)  # a third of an id's size: there is one for every row of a run
        if row in self._seen:
            return "duplicate"
        self._seen.add(row)
        return None


def _pair(settled: Settled, comparison: Comparison, prompt: Prompt, arms: Arms) -> PreferencePair:
    a_wins = settled.label != "b"
    p_a = 0.5 if settled.p_a is None else settled.p_a
    chosen, rejected = (arms.text_a, arms.text_b) if a_wins else (arms.text_b, arms.text_a)
    return PreferencePair(
        comparison_id=comparison.id,
        phase=comparison.phase,
        prompt=prompt.messages,
        chosen=chosen,
        rejected=rejected,
        # A tie's p_a may lie a hair on the other side of one half.
        p_chosen=max(0.5, p_a if a_wins else 1 - p_a),
        p_tie=settled.p_tie,
        confidence=settled.confidence,
        label_source=settled.label_source,
    )


def total(parts: Sequence[Accounting]) -> Accounting:
    """Return the sum of several accountings."""
    whole = Accounting()
    for part in parts:
        whole.comparisons += part.comparisons
        whole.rows += part.rows
        whole.states += part.states
        whole.filtered += part.filtered
    return whole
