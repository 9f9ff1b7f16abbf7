"""Prompts that no model can be asked: each is set aside with its reason, and the others go on without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cai.engine.scripted import ScriptedProcess
from tests import runs

POISON = {
    "a NUL": json.dumps({"id": "nul", "prompt": "Tell me\0now."}).encode(),
    "half a surrogate pair": b'{"id": "half", "prompt": "Tell me \\ud83d now."}',
    "byte 0xff": b'{"id": "bytes", "prompt": "Tell me \xff now."}',
}
LONG = {"id": "long", "prompt": "word " * 4000}
HUGE = {"id": "huge", "prompt": "word " * 2_000_000}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_inputs(tmp_path, n_prompts=10)
    return tmp_path


def add(folder: Path, *lines: bytes) -> None:
    """Add lines to the prompts, the first of them in front."""
    path = folder / "prompts.jsonl"
    path.write_bytes(b"\n".join([lines[0], path.read_bytes().rstrip(b"\n"), *lines[1:]]) + b"\n")


def test_every_poison_is_set_aside_with_its_reason_and_the_others_are_walked(folder: Path) -> None:
    clean = runs.run_json(runs.write_config(folder, runs.config(folder, name="clean")))
    add(folder, *POISON.values(), *(json.dumps(row).encode() for row in (LONG, HUGE)))
    said = runs.run_json(runs.write_config(folder, runs.config(folder, engine__max_model_len=4096)), check=3)
    assert said["failed_prompts"] == 5 and said["prompts"]["refused"] == 3 and said["prompts"]["train"] == 12
    assert runs.exports(said["run"])[0] == runs.exports(clean["run"])[0]
    failures = json.loads(runs.cai("status", said["run"], "--json").stdout)["failures"]
    reasons = {f["prompt_id"]: f["reason"] for f in failures}
    for line, what in ((1, "a NUL"), (12, "half a surrogate pair"), (13, "byte 0xff")):
        assert what in reasons.pop(f"{folder / 'prompts.jsonl'}:{line}")
    assert len(reasons) == 2 and all("exceed the context of 4096 tokens" in r for r in reasons.values())
    again = runs.run_json(runs.write_config(folder, runs.config(folder, engine__max_model_len=4096)), check=3)
    assert again["failed_prompts"] == 5 and again["calls"]["made"] == 0


def test_more_poison_than_the_config_bears_stops_before_anything_is_asked(folder: Path) -> None:
    add(folder, *[POISON["a NUL"]] * 21)
    tree = runs.config(folder, run__max_failure_rate=0.1)
    said = runs.cai("run", runs.write_config(folder, tree), "--quiet", check=2).stderr
    assert "21 of 31 rows cannot be asked" in said and "run.max_failure_rate" in said and "a NUL" in said


def test_more_failures_than_the_config_bears_stop_the_run_resumably(folder: Path) -> None:
    runs.write_inputs(folder, n_prompts=40)
    with ScriptedProcess(faults="400@1-") as server:
        tree = runs.config(folder, url=server.url, run__max_failure_rate=0.1)
        said = runs.cai("run", runs.write_config(folder, tree), "--quiet", check=3).stderr
        assert "run.max_failure_rate" in said and "400" in said


def test_retry_asks_again_about_what_failed_and_nothing_else(folder: Path) -> None:
    with ScriptedProcess(judge="coherent") as server:
        whole = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url, name="whole")))
    port = int(server.url.rsplit(":", 1)[1])
    path = runs.write_config(folder, runs.config(folder, url=server.url))
    with ScriptedProcess(judge="coherent", port=port, faults="400@1-3"):
        some = runs.run_json(path, check=3)
    assert 0 < some["failed_prompts"] <= 3
    with ScriptedProcess(judge="coherent", port=port, count_keys=True) as server:
        said = json.loads(runs.cai("retry", some["run"], "engine.retries=2", "--failed", "--json", "--quiet").stdout)
        assert server.stats()["bodies"]["distinct"] == said["calls"]["made"] > 0
    assert said["failed_prompts"] == 0 and said["accounting"] == whole["accounting"]
    assert said["calls"]["made"] == whole["calls"]["made"] - some["calls"]["made"]
    assert runs.exports(said["run"]) == runs.exports(whole["run"])
    assert "no prompt of this run has failed" in runs.cai("retry", said["run"], "--failed", check=2).stderr


def test_retry_says_what_a_refused_row_needs(folder: Path) -> None:
    add(folder, POISON["a NUL"])
    said = runs.run_json(runs.write_config(folder, runs.config(folder)), check=3)
    assert "mend the file" in runs.cai("retry", said["run"], check=2).stderr
