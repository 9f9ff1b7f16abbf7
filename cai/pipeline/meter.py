"""What a run tells its door while it works: which stage, how far, how fast, what failed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from cai.store.calls import Tally


@dataclass
class Stage:
    """One stretch of work with a known size."""

    name: str
    total: int
    done: int = 0
    failed: int = 0
    note: str = ""
    """What else is worth a word, such as the loss."""
    started: float = field(default_factory=time.monotonic)
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it has taken."""
        return (self.ended or time.monotonic()) - self.started

    def expect(self, total: int) -> Callable[[], None]:
        """Set the size, and return what counts one item as done."""
        self.total = total
        return self.tick

    def tick(self) -> None:
        """Count one item as done."""
        self.done += 1

    @property
    def eta_s(self) -> float | None:
        """Seconds until its end at the present rate; None before the first item."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


@dataclass
class Meter:
    """The run's stages so far and its tally. The door reads it; the run writes it."""

    tally: Tally = field(default_factory=Tally)
    stages: list[Stage] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """Sentences for the user that are no progress: warnings, what was reused, what is stale."""
    n_told: int = 0
    """How many of them the door has shown already."""

    @property
    def active(self) -> list[Stage]:
        """The stages at work, the one begun last first: where one has begun inside another, the innermost."""
        return [stage for stage in reversed(self.stages) if stage.ended is None]

    @contextmanager
    def stage(self, name: str, total: int) -> Iterator[Stage]:
        """Measure one stage."""
        stage = Stage(name, total)
        self.stages.append(stage)
        try:
            yield stage
        finally:
            stage.ended = time.monotonic()

    def note(self, sentence: str) -> None:
        """Tell the user something, once."""
        if sentence not in self.notes:
            self.notes.append(sentence)

    def timings(self) -> list[dict[str, Any]]:
        """Return the seconds of every stage."""
        return [{"stage": s.name, "seconds": round(s.seconds, 1)} for s in self.stages]
