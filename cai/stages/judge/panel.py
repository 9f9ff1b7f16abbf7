"""Mode `panel`: several judges on the same pair, by the mean of their probabilities or by majority.

What each of them said stays in the judgment's parts. A panel of which fewer than half could be read is invalid.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from cai.config import JudgeSection
from cai.records import Part
from cai.stages.judge.bench import Seat
from cai.stages.judge.readings import Reading, as_part, combined, mean_of, winner


def together(seats: Sequence[Seat], said: Sequence[Reading], settings: JudgeSection) -> Reading:
    """Return what a panel says whose members said this, in the order of its seats.

    The parts are one per member, `1 logprob:NAME`, then what the members' own readings rest on, as `2/sample 1`.
    """
    names = [f"{place} {seat.mode}:{seat.identity}" for place, seat in enumerate(seats, 1)]
    own = [
        part.model_copy(update={"name": f"{place}/{part.name}"})
        for place, reading in enumerate(said, 1)
        for part in reading.parts
    ]
    members = [as_part(name, reading) for name, reading in zip(names, said, strict=True)]
    whole = decided(members, settings)
    return dataclasses.replace(whole, parts=(*whole.parts, *own))


def decided(members: Sequence[Part], settings: JudgeSection) -> Reading:
    """Return what the members' probabilities come to by the panel's rule."""
    return mean_of(members) if settings.panel.rule == "mean" else majority(members, settings.tie_margin)


def majority(parts: Sequence[Part], tie_margin: float) -> Reading:
    """Return the share of the members that name arm a, ties counting half."""
    votes = [{"a": 1.0, "tie": 0.5, "b": 0.0}[winner(p.value, tie_margin)] for p in parts if p.value is not None]
    whole = mean_of(parts)
    return whole if whole.p_a is None else combined(parts, sum(votes) / len(votes))
