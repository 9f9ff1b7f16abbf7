"""Clocks that jump and zones that differ: durations are true, times are in UTC, and results do not change."""

from __future__ import annotations

import json
import sqlite3
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from cai import manifest
from cai.engine.scripted import ScriptedProcess
from cai.store import schema
from cai.trail import RunView
from cai.view.pages.run import _rates
from tests import runs

HOUR_S = 3600.0
ZONES = ("Pacific/Auckland", "America/St_Johns")


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def jumping(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the clock on by two hours and back by three in turn, whenever somebody looks."""
    real, offset, steps = time.time, 0.0, 0

    def now() -> float:
        nonlocal offset, steps
        offset += (2 if steps % 2 else -3) * HOUR_S
        steps += 1
        return real() + offset

    monkeypatch.setattr(time, "time", now)


def test_times_are_in_utc_whatever_the_zone(zone: str) -> None:
    told = datetime.strptime(manifest.now(), "%Y-%m-%dT%H:%M:%SZ").replace(tzinfo=UTC)
    assert abs(told - datetime.now(UTC)) < timedelta(minutes=5), zone


def test_a_clock_that_jumps_changes_no_duration_and_no_result(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=5)
    with ScriptedProcess(judge="coherent") as server:
        calm = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, name="calm")))
        began = time.monotonic()
        with pytest.MonkeyPatch.context() as patch:
            jumping(patch)
            rough = runs.run_json(runs.write_config(tmp_path, runs.config(tmp_path, url=server.url, name="rough")))
            assert runs.run_json(tmp_path / "run.yaml")["calls"]["made"] == 0
        took_s = time.monotonic() - began
    run = RunView(rough["run"])
    assert runs.exports(rough["run"]) == runs.exports(calm["run"])
    made_at = [row[0] for row in run.connection.execute("SELECT made_at FROM calls ORDER BY rowid")]
    assert made_at != sorted(made_at), "the clock did jump"
    durations = [json.loads(row[0])["duration_s"] for row in run.connection.execute("SELECT circumstances FROM calls")]
    durations += [stage["seconds"] for stage in rough["timings"]]
    durations += [session["seconds"] for session in run.manifest["sessions"]]
    assert len(durations) > 50 and all(0 <= seconds <= took_s + 1 for seconds in durations)


def test_the_rate_of_a_live_run_leaves_out_calls_from_before_the_clock_was_set_back(tmp_path: Path) -> None:
    path = tmp_path / "store.sqlite"
    schema.create(path)
    now = time.time()
    times = [now + HOUR_S + i for i in range(500)] + [now - 10 + i for i in range(10)]
    connection = sqlite3.connect(path)
    connection.executemany(
        "INSERT INTO calls VALUES (?, 'score', 'm', '{}', '{}', 'r', '{}', ?)", list(enumerate(times))
    )
    connection.commit()
    view = cast(RunView, SimpleNamespace(connection=connection))
    for is_live in (True, False):
        assert 0 < _rates(view, is_live)["calls_per_s"] < 2
    connection.close()
