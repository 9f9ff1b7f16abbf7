"""What is shown: the runs of a folder, each with its files, its index and what was counted about it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from cai.audit.compare import compare
from cai.audit.summary import summary
from cai.errors import UserError
from cai.evaluate import JudgeCount
from cai.evaluate.judging import together
from cai.manifest import is_locked
from cai.report.collect import redacted
from cai.review import Desk
from cai.stages.admit import Accounting, total
from cai.trail import RunView
from cai.view.index import DecisionIndex

T = TypeVar("T")

_PATIENCE_S = 0.8
"""So long a page waits for figures that are being counted; after that it comes without them."""
_REST = 4
"""What keeps changing is counted anew after a rest of so many times the time that the last counting took."""


@dataclass(frozen=True)
class Reckoning:
    """What going through every comparison of a run once has given."""

    phases: list[dict[str, Any]]
    """Name, side, accounting and judging of every phase, in order; the evaluation last."""
    ends: list[dict[str, Any]]
    """Where every comparison ended."""

    @property
    def accounting(self) -> dict[str, Any] | None:
        """The training phases added up; None before the first comparison."""
        counted = [phase["counted"] for phase in self.phases if phase["side"] == "train"]
        return total(counted).as_dict() if counted else None

    @property
    def judge(self) -> Any:
        """The judge model over all phases, as a tally."""
        told = [p["judged"]["judge"] for p in self.phases if p["judged"]["judge"]]
        return together(told)


def reckon(folder: Path) -> Reckoning:
    """Go through every comparison of a run, counting. Takes about a millisecond for each."""
    with RunView(folder) as run:
        phases: list[dict[str, Any]] = []
        ends: list[dict[str, Any]] = []
        sides = [(name, "train") for name in run.phases] + [("evaluate", "held_out")]
        for name, side in sides:
            judged, counted = JudgeCount(run.questions), Accounting()
            for end in run.ended(name, side=side):
                judged.add(end)
                counted.count(end.admission)
                ends.append(
                    {
                        "comparison": end.comparison.id,
                        "state": end.admission.state,
                        "reason": end.admission.reason,
                        "label": end.settled.label,
                        "p_a": end.settled.p_a,
                        "confidence": end.settled.confidence,
                    }
                )
            if counted.comparisons:
                phases.append({"name": name, "side": side, "counted": counted, "judged": judged.as_dict()})
        return Reckoning(phases, ends)


def _summary(folder: Path) -> dict[str, Any]:
    with RunView(folder) as run:
        return summary(run)


def _compare(one: Path, other: Path) -> dict[str, Any]:
    with RunView(one) as ours, RunView(other) as theirs:
        return compare(ours, theirs)


class Later(Generic[T]):
    """A value that takes long to make: it is made in the background, and again when what it is made of has changed."""

    def __init__(self, workers: ThreadPoolExecutor) -> None:
        self._workers, self._lock = workers, threading.Lock()
        self._made: tuple[Hashable, T] | None = None
        self._making: tuple[Hashable, float, Future[T]] | None = None
        self._rests_until = 0.0

    def get(self, of: Hashable, make: Callable[[], T], *, patience_s: float) -> T | None:
        """Return the value, waiting a little for one that is out of date; None before the first. Raises what it does.

        What changes all the time is made again only after a rest of several times as long as it took.
        """
        with self._lock:
            self._take()
            is_due = self._made is None or (self._made[0] != of and time.monotonic() > self._rests_until)
            if self._making is None and is_due:
                self._making = (of, time.monotonic(), self._workers.submit(make))
            making = self._making
        if making is not None:
            with suppress(TimeoutError):
                making[2].exception(patience_s)
        with self._lock:
            self._take()
            return self._made[1] if self._made else None

    def _take(self) -> None:
        if self._making is None or not self._making[2].done():
            return
        of, begun, future = self._making
        self._making = None
        self._made = (of, future.result())
        self._rests_until = time.monotonic() + _REST * (time.monotonic() - begun)


class Run:
    """One run as the pages see it. May be used from any thread."""

    def __init__(self, name: str, folder: Path, workers: ThreadPoolExecutor) -> None:
        self.name, self.folder = name, folder
        self.index = DecisionIndex(folder)
        self._lock = threading.Lock()
        self._view: RunView | None = None
        self._stamp: tuple[int, int] | None = None
        self._reckoning: Later[Reckoning] = Later(workers)
        self._summary: Later[dict[str, Any]] = Later(workers)
        self._desk: tuple[Desk, tuple[int, int] | None] | None = None
        self._seen: dict[str, set[str]] = {}
        self._remembered: dict[str, tuple[int, Any]] = {}

    @property
    def view(self) -> RunView:
        """The run's files as they are now: read anew whenever the manifest has changed."""
        with self._lock:
            found = (self.folder / "manifest.json").stat()
            stamp = (found.st_mtime_ns, found.st_size)
            if self._view is None or stamp != self._stamp:
                # The one before is not closed: another thread may be reading through it. It goes with its last reader.
                self._view, self._stamp = RunView(self.folder), stamp
            return self._view

    @property
    def has_begun(self) -> bool:
        """Whether there is a store."""
        return (self.folder / "store.sqlite").exists()

    def followed(self) -> tuple[RunView, int]:
        """Return the run's files and the length of its ledger, with the index up to date. Raises StoreError."""
        view = self.view
        if not self.has_begun:
            raise UserError(f"{self.name}: nothing has been generated yet, so there is nothing to show")
        _ = view.connection  # says in one sentence what is wrong with a damaged store
        return view, self.index.follow(view)

    def reckoning(self, patience_s: float = _PATIENCE_S) -> Reckoning | None:
        """Return the newest counting of every comparison; None before the first is ready."""

        def make() -> Reckoning:
            made = reckon(self.folder)
            self.index.keep_ends(made.ends)
            return made

        return self._reckoning.get(self._now(), make, patience_s=patience_s)

    def summary(self, patience_s: float = _PATIENCE_S) -> dict[str, Any] | None:
        """Return what `cai audit summary` tells of the run; None before it is ready."""
        return self._summary.get(self._now(), lambda: _summary(self.folder), patience_s=patience_s)

    def _now(self) -> Hashable:
        """Return what everything counted depends on: the ledger's length and the manifest."""
        _, length = self.followed()
        return length, self._stamp

    def remembered(self, name: str, length: int, make: Callable[[], Any]) -> Any:
        """Return what `make` gave when the ledger was as long as it is now."""
        kept = self._remembered.get(name)
        if kept is None or kept[0] != length:
            kept = self._remembered[name] = (length, make())
        return kept[1]

    @property
    def state(self) -> str:
        """`at work`, `done` or `stopped`."""
        if is_locked(self.folder / "run.lock"):
            return "at work"
        return "done" if self.view.manifest["done"] else "stopped"

    # -- reviews -----------------------------------------------------------------------------------------------------

    @property
    def has_draws(self) -> bool:
        """Whether anything was drawn for review; asked without opening the store for writing."""
        query = self.view.connection.execute
        return query("SELECT 1 FROM ledger WHERE tag = 'review_item' LIMIT 1").fetchone() is not None

    @property
    def desk(self) -> Desk:
        """The review desk, one for all reviewers; opened when first used and again when the run's files change."""
        view = self.view
        with self._lock:
            if self._desk is None or self._desk[1] != self._stamp:
                # One that is replaced is left to whoever still works at it.
                self._desk = Desk(view.folder), self._stamp
            return self._desk[0]

    def show_to(self, visitor: str, comparison_ids: Iterable[str]) -> None:
        """Remember that a visitor was shown verdicts, so that their later votes on these are not called blind."""
        self._seen.setdefault(visitor, set()).update(comparison_ids)

    def has_seen(self, visitor: str, comparison_id: str) -> bool:
        """Whether a page of this server has shown this visitor the verdict."""
        return comparison_id in self._seen.get(visitor, ())

    def close(self) -> None:
        """Close what is open."""
        self.index.close()
        if self._desk:
            self._desk[0].close()
        if self._view is not None:
            self._view.close()


class Site:
    """The runs that are served: one, or all that lie directly in a folder."""

    def __init__(self, path: str | Path) -> None:
        self.root = Path(path).resolve()
        if not self.root.is_dir():
            raise UserError(f"{path}: no such folder; give the folder of a run, or the folder that holds runs")
        self.is_single = (self.root / "manifest.json").exists()
        self._runs: dict[str, Run] = {}
        self._lock = threading.Lock()
        self._workers = ThreadPoolExecutor(1, thread_name_prefix="counting")
        self._compared: dict[tuple[str, str], Later[dict[str, Any]]] = {}
        if not self.runs():
            raise UserError(
                f"{path}: no run here (no manifest.json in it or in a folder of it); start one with `cai run`"
            )

    def runs(self) -> list[Run]:
        """Return the runs as they are found now, by name. A link that leads out of the folder is passed over."""
        with self._lock:
            found = dict(self._found())
            for name in self._runs.keys() - found.keys():
                self._runs.pop(name).close()
            for name, folder in found.items():
                if name not in self._runs:
                    self._runs[name] = Run(name, folder, self._workers)
            return [self._runs[name] for name in sorted(self._runs)]

    def _found(self) -> Iterator[tuple[str, Path]]:
        if self.is_single:
            yield self.root.name, self.root
            return
        for child in self.root.iterdir():
            if (child / "manifest.json").is_file() and child.resolve().parent == self.root:
                yield child.name, child

    def run(self, name: str) -> Run | None:
        """Return the run of this name, or None. A name is looked up, never made into a path."""
        known = self._runs.get(name)
        if known is not None and (known.folder / "manifest.json").exists():
            return known
        return next((run for run in self.runs() if run.name == name), None)

    def compared(self, one: Run, other: Run) -> dict[str, Any] | None:
        """Return what `cai audit compare` tells of two runs; None before it is ready."""
        later = self._compared.setdefault((one.name, other.name), Later(self._workers))
        of = (one.followed()[1], other.followed()[1])
        return later.get(of, lambda: _compare(one.folder, other.folder), patience_s=_PATIENCE_S)

    def close(self) -> None:
        """Stop counting and close every run."""
        self._workers.shutdown(wait=True, cancel_futures=True)
        for run in self._runs.values():
            run.close()


def identity(text: str) -> str:
    """Return a model's identity without anybody's password in it."""
    return redacted(text)
