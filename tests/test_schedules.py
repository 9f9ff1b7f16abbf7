"""Prompts end in any order, fail, and are cut off anywhere: what is done is known by content, never by a count."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cai.cli.load import load_config
from cai.engine.model import Generate, Reply, ScoreGroup
from cai.errors import RejectedError
from cai.pipeline.conduct import Conductor, Result
from cai.pipeline.meter import Meter
from cai.pipeline.retry import retry
from cai.pipeline.serving import Fleet
from cai.store import ledger, store
from cai.trail import RunView
from tests import runs
from tests.judging import InProcess

N_PROMPTS = 5
N_CALLS = 45
"""About how many calls a whole run takes."""


class Cut(Exception):
    """The machine has gone."""


class Schedule(NamedTuple):
    """What befalls one session."""

    seed: int
    """Of the delays, and of who fails."""
    p_failure: float
    """How likely a request is refused."""
    cut_at: int
    """The call at which the session is cut off, if it gets so far; 0 for never."""


SCHEDULES = st.lists(
    st.builds(Schedule, st.integers(0, 999), st.sampled_from((0.0, 0.1)), st.integers(1, N_CALLS)), max_size=3
)


class Unruly(InProcess):
    """Answers after a while, in any order, or not at all; at the session's end it keeps what lies on the disk."""

    def __init__(self, schedule: Schedule, run: Path) -> None:
        super().__init__()
        self._chance, self._schedule, self._run, self._n = Random(schedule.seed), schedule, run, 0

    async def generate(self, request: Generate) -> Reply:
        await self._befall()
        return await super().generate(request)

    async def score(self, group: ScoreGroup, heard: Any = None) -> list[Reply]:
        await self._befall()
        return await super().score(group)

    async def _befall(self) -> None:
        for _ in range(self._chance.randrange(9)):
            await asyncio.sleep(0)
        self._n += 1
        if self._n == self._schedule.cut_at:
            with COMMITTING:
                # One may be there of a cut that nobody heard, since the request's prompt had failed already.
                shutil.rmtree(left_by(self._run), ignore_errors=True)
                shutil.copytree(self._run, left_by(self._run), ignore=shutil.ignore_patterns("*-shm"))
            raise Cut
        if self._chance.random() < self._schedule.p_failure:
            raise RejectedError("not now")


COMMITTING = threading.Lock()
"""Held by the writer while it commits: what is copied meanwhile is a copy of one instant."""


def left_by(run: Path) -> Path:
    return run.with_name("left")


@pytest.fixture
def whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of an undisturbed run."""
    commit = store._commit

    def held(*arguments: Any) -> None:
        with COMMITTING:
            commit(*arguments)

    monkeypatch.setattr(store, "_commit", held)
    runs.write_inputs(tmp_path, n_prompts=N_PROMPTS)
    runs.write_config(tmp_path, runs.config(tmp_path))
    run = tmp_path / "runs" / "whole"
    session(run, Schedule(0, 0.0, 0))
    yield run


def session(run: Path, schedule: Schedule, *, again: bool = False) -> Result:
    """Work on a run for as long as the schedule lets it; with `again` on those that failed."""
    config, near = load_config(str(run.parent.parent / "run.yaml"), [f"run.dir={run}"])
    conductor = retry(str(run), [], Meter()) if again else Conductor(config, near=near, meter=Meter())

    async def serve(*_: Any) -> Unruly:
        return Unruly(schedule, run)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "_serve", serve)
        return asyncio.run(conductor.run())


def through(run: Path, schedules: Sequence[Schedule]) -> Result:
    """Take a run through everything that befalls it, and then to its end."""
    for schedule in schedules:
        try:
            session(run, schedule)
        except Cut:
            shutil.rmtree(run)
            left_by(run).rename(run)
    result = session(run, Schedule(1, 0.0, 0))
    return session(run, Schedule(2, 0.0, 0), again=True) if result.failed_prompts else result


def kept(run: Path) -> dict[str, set[Any]]:
    """Return what a run has kept, by content."""
    queries = {
        "calls": "SELECT key, reply_id FROM calls",
        "records": "SELECT id FROM records WHERE phase NOT LIKE '%superseded%' OR phase IS NULL",
        "decisions": "SELECT id FROM ledger WHERE tag = 'judgment'",
        "done": "SELECT prompt_id FROM walks WHERE state = 'done'",
        "prompts": "SELECT prompt_id FROM prompts",
    }
    with RunView(run) as view:
        assert list(ledger.verify(view.connection)) == []
        return {name: set(view.connection.execute(query)) for name, query in queries.items()}


def test_whatever_the_schedule_the_same_is_kept(whole: Path) -> None:
    expected, exports = kept(whole), runs.exports(whole)
    assert expected["done"] == expected["prompts"] and len(expected["done"]) == N_PROMPTS

    @settings(max_examples=6, deadline=None)
    @given(SCHEDULES)
    def holds(schedules: Sequence[Schedule]) -> None:
        run = whole.with_name("disturbed")
        shutil.rmtree(run, ignore_errors=True)
        result = through(run, schedules)
        assert result.failed_prompts == 0
        assert kept(run) == expected
        assert runs.exports(run) == exports

    holds()
