"""The whole road against a scripted server: what it asks, what it keeps, what it reuses, what it refuses."""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cai.engine.scripted import ScriptedProcess
from cai.errors import CaiError
from cai.store import ledger, schema
from cai.trail import RunView
from tests import runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_inputs(tmp_path)
    return tmp_path


@pytest.fixture
def server() -> Iterator[ScriptedProcess]:
    with ScriptedProcess(judge="coherent", count_keys=True) as process:
        yield process


def test_golden_run(folder: Path) -> None:
    """A run's exported pairs are the same bytes today as when this test was written."""
    said = runs.run_json(runs.write_config(folder, runs.config(folder)))
    counts = said["accounting"]
    assert counts["comparisons"] == sum(
        counts[s] for s in ("failed", "overridden", "refused", "invalid", "abstained", "tied", "filtered", "kept")
    )
    assert counts["comparisons"] > 20 and counts["rows"] == counts["kept"] > 0
    pairs, provenance = runs.exports(said["run"])
    rows = [json.loads(line) for line in pairs.splitlines()]
    origins = [json.loads(line) for line in provenance.splitlines()]
    assert len(rows) == len(origins) == counts["rows"]
    assert set(rows[0]) == {"prompt", "chosen", "rejected", "p_chosen", "p_tie"}
    assert all(row["p_chosen"] >= 0.5 for row in rows)
    run = RunView(said["run"])
    assert list(ledger.verify(run.connection)) == []
    for row, origin in zip(rows, origins, strict=True):
        assert run.record(origin["chosen_id"]).text.strip() == row["chosen"][0]["content"].strip()
        for vote in origin["votes"]:
            assert all(run.record(j).comparison_id == origin["pair_id"] for j in vote["judgments"])


def test_the_same_command_again_asks_nothing(folder: Path) -> None:
    path = runs.write_config(folder, runs.config(folder))
    first = runs.run_json(path)
    again = runs.run_json(path)
    assert first["calls"]["made"] > 100 and again["calls"] == {"made": 0, "reused": 0}
    assert again["accounting"] == first["accounting"]


def test_a_new_run_beside_it_reuses_every_answer_that_did_not_change(folder: Path, server: ScriptedProcess) -> None:
    one = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url, name="one")))
    text = (folder / "constitution.yaml").read_text(encoding="utf-8")
    (folder / "constitution.yaml").write_text(text.replace("Which answer is kinder?", "Which is the kinder answer?"))
    tree = runs.config(folder, url=server.url, name="two", run__reuse=True)
    two = runs.run_json(runs.write_config(folder, tree))
    judgments = _calls(Path(one["run"]), "score")
    assert two["calls"]["made"] == judgments / 2  # one of the two principles that are judged
    assert two["calls"]["made"] + two["calls"]["reused"] == one["calls"]["made"]


def _calls(run: Path, kind: str) -> int:
    connection = sqlite3.connect(run / "store.sqlite")
    return int(connection.execute("SELECT count(*) FROM calls WHERE kind = ?", (kind,)).fetchone()[0])


def test_no_request_is_sent_twice(folder: Path, server: ScriptedProcess) -> None:
    runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url)))
    assert server.stats()["bodies"]["repeated"] == 0


def test_changing_a_threshold_asks_nothing(folder: Path) -> None:
    runs.run_json(runs.write_config(folder, runs.config(folder)))
    tree = runs.config(folder, pairs={"min_confidence": 0.6})
    path = runs.write_config(folder, tree)
    refused = runs.cai("run", path, "--quiet", check=2)
    assert "pairs.min_confidence: 0.0 -> 0.6" in refused.stderr and "--accept-changes" in refused.stderr
    said = json.loads(runs.cai("run", path, "--quiet", "--json", "--accept-changes").stdout)
    assert said["calls"]["made"] == 0
    assert said["accounting"]["filtered_by"]["low_confidence"] > 0


def test_an_edited_constitution_is_refused_with_a_diff(folder: Path) -> None:
    path = runs.write_config(folder, runs.config(folder))
    first = runs.run_json(path)
    text = (folder / "constitution.yaml").read_text(encoding="utf-8")
    (folder / "constitution.yaml").write_text(text.replace("kinder?", "gentler?"))
    said = runs.cai("run", path, "--quiet", check=2).stderr
    assert "-    compare: Which answer is kinder?" in said and "+    compare: Which answer is gentler?" in said
    foreseen = json.loads(runs.cai("plan", path, "--json").stdout)["kept"]
    accepted = json.loads(runs.cai("run", path, "--quiet", "--json", "--accept-changes").stdout)
    assert accepted["accounting"]["failed"] == 0
    first = first["by_kind"]["made"]
    # One of the two principles that are judged is asked again, and nothing else.
    assert accepted["by_kind"]["made"] == {"score": first["score"] // 2} == foreseen["asked"]
    assert accepted["calls"]["reused"] == first["generate"] + first["score"] // 2


def test_a_changed_sampling_sets_the_old_walk_aside(folder: Path) -> None:
    path = runs.write_config(folder, runs.config(folder))
    first = runs.run_json(path)
    tree = runs.config(folder, respond={"max_tokens": 500})
    said = json.loads(runs.cai("run", runs.write_config(folder, tree), "--quiet", "--json", "--accept-changes").stdout)
    assert said["calls"]["made"] > 0
    run = RunView(said["run"])
    for _, prompt in run.prompts("train"):
        assert len(run.records("walk", prompt.id)["response"]) == 2
    assert said["accounting"]["comparisons"] <= 3 * 20 and first["accounting"]["comparisons"] <= 3 * 20


def test_a_judge_that_always_picks_the_first_answer_decides_nothing(folder: Path) -> None:
    tree = runs.config(folder, engine__args=["--judge", "always-a"])
    said = runs.run_json(runs.write_config(folder, tree))
    run = RunView(said["run"])
    stands = {v.principle_id: v.stand for end in run.ended("walk") for v in end.settled.votes}
    assert stands == {"brief": "votes", "kind": "abstains", "clear": "abstains"}


def test_unreadable_judgments_are_invalid_with_their_reason(folder: Path) -> None:
    tree = runs.config(folder, engine__args=["--judge", "invalid"])
    said = runs.run_json(runs.write_config(folder, tree))
    run = RunView(said["run"])
    asked = [d for end in run.ended("walk") for d in end.decisions if d.call_key]
    assert asked and {(d.verdict, d.reason) for d in asked} == {("invalid", "outside_options")}
    assert all(run.call(d.call_key) is not None for d in asked)


def test_cot_reasons_first_and_is_clamped(folder: Path) -> None:
    tree = runs.config(folder, judge={"mode": "cot", "cot": {"max_tokens": 600}})
    said = runs.run_json(runs.write_config(folder, tree))
    run = RunView(said["run"])
    decided = [d for end in run.ended("walk") for d in end.decisions if d.call_key]
    assert decided and all(0.4 <= d.p_a <= 0.6 for d in decided)
    request, reply = run.call(decided[0].call_key)
    assert request["kind"] == "score" and request["messages"][-3]["role"] == "assistant"
    assert reply.logprobs is not None


def test_a_budget_stops_cleanly_and_is_resumed(folder: Path, server: ScriptedProcess) -> None:
    tree = runs.config(folder, url=server.url)
    path = runs.write_config(folder, tree)
    stopped = runs.cai("run", path, "budget.calls=40", "--quiet", check=3)
    assert "the budget of 40 calls is spent" in stopped.stderr
    kept = _calls(folder / "runs" / "run", "generate") + _calls(folder / "runs" / "run", "score")
    assert 40 <= kept < 40 + 128
    whole = runs.run_json(path)
    undisturbed = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url, name="undisturbed")))
    assert runs.exports(whole["run"]) == runs.exports(undisturbed["run"])


def test_two_processes_on_one_folder(folder: Path) -> None:
    tree = runs.config(folder, engine__args=["--judge", "coherent", "--latency-ms", "100"])
    path = runs.write_config(folder, tree)
    first = subprocess.Popen(runs.command("run", path, "--quiet"), stdout=subprocess.DEVNULL)
    try:
        lock = folder / "runs" / "run" / "run.lock"
        while not (lock.exists() and lock.read_text()):
            assert first.poll() is None
        first.send_signal(signal.SIGSTOP)  # however long the second one takes to start
        second = runs.cai("run", path, "--quiet", check=2)
        assert f"already run by pid {first.pid}" in second.stderr
    finally:
        first.send_signal(signal.SIGCONT)
        assert first.wait() == 0
    assert runs.run_json(path)["calls"]["made"] == 0


def test_duplicate_prompts_are_folded_and_counted(folder: Path, server: ScriptedProcess) -> None:
    unique = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url, name="unique")))
    lines = (folder / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    (folder / "prompts.jsonl").write_text("\n".join(lines + lines[:5]) + "\n", encoding="utf-8")
    said = runs.run_json(runs.write_config(folder, runs.config(folder, url=server.url)))
    assert said["prompts"]["duplicates_folded"] == 5 and said["prompts"]["train"] == 20
    assert said["calls"] == unique["calls"] and runs.exports(said["run"]) == runs.exports(unique["run"])


def test_poison_prompts_fail_alone(folder: Path) -> None:
    rows = [json.dumps({"id": f"long-{i}", "prompt": f"{i} " + "word " * 4000}) for i in range(2)]
    with open(folder / "prompts.jsonl", "a", encoding="utf-8") as file:
        file.write("\n".join(rows) + "\n")
    tree = runs.config(folder, engine__max_model_len=4096)
    said = runs.run_json(runs.write_config(folder, tree), check=3)
    assert said["failed_prompts"] == 2
    status = json.loads(runs.cai("status", said["run"], "--json").stdout)
    assert len(status["failures"]) == 2
    assert all("exceed the context of 4096 tokens" in f["reason"] for f in status["failures"])


def test_unknown_config_key_is_refused_with_its_place(folder: Path) -> None:
    path = folder / "bad.yaml"
    path.write_text("run:\n  dir: x\n  seeed: 1\nconstitution: c.yaml\n", encoding="utf-8")
    said = runs.cai("run", path, check=2).stderr
    assert "bad.yaml:3:3" in said and "seed" in said


def test_hostile_model_text_reaches_no_terminal(folder: Path) -> None:
    """Whatever is printed, no byte of it steers a terminal."""
    rows = [{"id": "\x1b]52;c;evil\x07", "prompt": "\x1b[2J\u202eevil [/foo] {{7*7}} {response_b} %s $x"}]
    (folder / "prompts.jsonl").write_text(json.dumps(rows[0]) + "\n", encoding="utf-8")
    path = runs.write_config(folder, runs.config(folder))
    said = runs.cai("plan", path, check=None)
    for text in (said.stdout, said.stderr):
        assert not any(ord(c) < 32 and c not in "\n\t" or 127 <= ord(c) < 160 for c in text)


def test_the_ledger_of_a_resumed_run_still_verifies(folder: Path) -> None:
    path = runs.write_config(folder, runs.config(folder))
    runs.cai("run", path, "budget.calls=60", "--quiet", check=3)
    said = runs.run_json(path)
    assert list(ledger.verify(schema.connect(Path(said["run"]) / "store.sqlite", readonly=True))) == []


def test_what_a_killed_session_spent_counts_against_the_budget(folder: Path) -> None:
    with ScriptedProcess(judge="coherent", count_keys=True, latency_ms=20) as slow:
        path = runs.write_config(folder, runs.config(folder, url=slow.url, engine__prompts_in_flight=2))
        process = subprocess.Popen(runs.command("run", path, "--quiet"))
        while _n_walked(folder / "runs" / "run") < 6:
            assert process.poll() is None
        assert _status(folder)["at_work"]
        process.kill()
        process.wait()
        assert not _status(folder)["at_work"]
        before = slow.stats()["bodies"]["distinct"]
        stopped = runs.cai("run", path, "budget.calls=20", "--quiet", check=3)
        assert "the budget of 20 calls is spent" in stopped.stderr
        assert slow.stats()["bodies"]["distinct"] == before
    sessions = RunView(folder / "runs" / "run").manifest["sessions"]
    assert len(sessions) == 2 and 20 < sessions[0]["made"] <= before and sessions[1]["made"] == 0


def _status(folder: Path) -> dict[str, Any]:
    return json.loads(runs.cai("status", folder / "runs" / "run", "--json").stdout)


def _n_walked(run: Path) -> int:
    try:
        with closing(schema.connect(run / "store.sqlite", readonly=True)) as connection:
            return int(connection.execute("SELECT count(*) FROM walks").fetchone()[0])
    except (CaiError, sqlite3.OperationalError):
        return 0
