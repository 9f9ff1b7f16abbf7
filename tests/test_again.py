"""A run once more: nothing is asked twice, an edit asks what it touches, and `--verify` finds what does not follow."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path
from random import Random
from typing import Any

import pytest

from cai import promptset
from cai.config import EngineSection, RunConfig
from cai.engine.client import Client
from cai.engine.model import ScoreGroup
from cai.engine.scripted import ScriptedServer
from cai.engine.tokens import ByteTokens
from cai.engine.transport import Endpoint
from cai.pipeline.ingest import Divided
from cai.templates import Turn
from cai.trail import RunView
from tests import runs


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_inputs(tmp_path, n_prompts=8)
    return tmp_path


def run(folder: Path, name: str = "run", **changes: Any) -> dict[str, Any]:
    """Run a config and return what it said."""
    return runs.run_json(runs.write_config(folder, runs.config(folder, name=name, **changes), f"{name}.yaml"))


def decisions(said: dict[str, Any]) -> list[tuple[Any, ...]]:
    """Return every decision of a run without the ids that name the road."""
    ends = list(RunView(said["run"]).ended("walk"))
    return [(d.comparison_id, d.question_id, d.order, d.verdict, d.p_a) for end in ends for d in end.decisions]


def test_fast_paths_change_no_verdict(folder: Path) -> None:
    fast = run(folder, "fast")
    slow = run(folder, "slow", engine__fast_paths=False)
    assert decisions(fast) == decisions(slow) and len(decisions(fast)) > 50
    assert runs.exports(fast["run"])[0] == runs.exports(slow["run"])[0]


@pytest.mark.parametrize("mode", ["score", "rubric"])
def test_fast_paths_change_no_grade(folder: Path, mode: str) -> None:
    path = folder / "constitution.yaml"
    asks = "    rubric: [{ask: Is it kind?, weight: 2.0}, {ask: Is it rude?, weight: -1.0}]\n"
    path.write_text(path.read_text(encoding="utf-8") + asks, encoding="utf-8")
    fast, slow = (
        run(folder, name, judge={"mode": mode}, engine__fast_paths=name == "fast", prompts__train_limit=2)
        for name in ("fast", "slow")
    )
    assert decisions(fast) == decisions(slow)
    assert len([p_a for *_, p_a in decisions(slow) if p_a not in (None, 0.0, 0.5, 1.0)]) > 5
    assert runs.exports(fast["run"])[0] == runs.exports(slow["run"])[0]


def test_the_scoring_road_changes_no_verdict(folder: Path) -> None:
    told = run(folder, "told", judge={"max_outside_mass": 1.0})
    slow = run(folder, "slow", judge={"max_outside_mass": 1.0}, engine__fast_paths=False)
    for one, other in zip(decisions(told), decisions(slow), strict=True):
        assert one[:-1] == other[:-1] and (one[-1] is None or abs(one[-1] - other[-1]) < 1e-9)
    assert runs.exports(told["run"])[0] == runs.exports(slow["run"])[0]
    sessions = RunView(told["run"]).manifest["sessions"]
    (roads,) = sessions[-1]["roads"].values()
    assert set(roads["ms_per_prompt"]) == {"/generative_scoring", "/v1/completions"}
    assert roads["taken"] in roads["ms_per_prompt"]


def test_a_server_without_the_scoring_road_is_asked_by_the_other() -> None:
    tails = tuple((Turn("user", f"Principle: {i}"), Turn("assistant", "It is answer")) for i in range(3))
    group = ScoreGroup((Turn("user", "A pair."),), tails, ("A", "B"), mass=False)

    async def main(offered: bool) -> tuple[list[str], dict[str, Any]]:
        async with ScriptedServer() as server:
            if not offered:
                del server.api._asking[b"/generative_scoring"]
            settings = EngineSection(kind="scripted")
            endpoint = Endpoint(server.url, settings)
            await endpoint.open()
            client = Client([endpoint], settings, identity="m", name="scripted", tokenizer=ByteTokens())
            replies = [reply for _ in range(8) for reply in await client.score(group)]
            await endpoint.close()
        assert all(reply.error is None for reply in replies)
        return [reply.road for reply in replies], client.roads.as_dict()

    roads, found = asyncio.run(main(offered=False))
    assert set(roads) == {"/v1/completions"} and found["taken"] == "/v1/completions"
    roads, found = asyncio.run(main(offered=True))
    assert set(roads) == {"/v1/completions", "/generative_scoring"} and len(found["ms_per_prompt"]) == 2


def test_a_finished_run_keeps_its_report(folder: Path) -> None:
    said = run(folder)
    before = Path(said["report"]).stat().st_mtime_ns
    assert run(folder)["calls"] == {"made": 0, "reused": 0}
    assert Path(said["report"]).stat().st_mtime_ns == before


def test_added_prompts_are_noticed_after_the_end(folder: Path) -> None:
    run(folder)
    with (folder / "prompts.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"prompt": "One more, please."}) + "\n")
    again = run(folder)
    assert again["prompts"]["train"] == 9 and again["calls"]["made"] > 0


EDITS = {
    "nothing": ("", ""),
    "compare": ("Which answer is kinder?", "Which is the kinder answer?"),
    "critique": ("Say where the answer is unkind.", "Name what is unkind in the answer."),
    "revision": ("Write the answer again, clearly.", "Write it again, clearly."),
}


@pytest.mark.parametrize("edit", EDITS)
def test_plan_tells_what_an_edit_costs(folder: Path, edit: str) -> None:
    first = run(folder, "first", run__reuse=True)
    path = folder / "constitution.yaml"
    path.write_text(path.read_text(encoding="utf-8").replace(*EDITS[edit]), encoding="utf-8")
    config = runs.write_config(folder, runs.config(folder, name="second", run__reuse=True))
    kept = json.loads(runs.cai("plan", config, "--json").stdout)["kept"]
    assert not (folder / "runs" / "second").exists()
    said = runs.run_json(config)
    assert sum(kept["asked"].values()) == said["calls"]["made"]
    assert sum(kept["reused"].values()) == said["calls"]["reused"]
    assert kept["asked"] == {k: n for k, n in said["by_kind"]["made"].items() if n}
    if edit == "compare":
        assert said["by_kind"]["made"] == {"score": first["by_kind"]["made"]["score"] // 2}


def test_plan_says_nothing_of_kept_answers_where_there_are_none(folder: Path) -> None:
    config = runs.write_config(folder, runs.config(folder))
    assert json.loads(runs.cai("plan", config, "--json").stdout)["kept"] is None
    assert not (folder / "runs").exists()


def verify(folder: Path, *, check: int) -> dict[str, Any]:
    """Verify the run that `run` made."""
    return json.loads(runs.cai("run", folder / "run.yaml", "--verify", "--quiet", "--json", check=check).stdout)


def test_verify_derives_a_run_again(folder: Path) -> None:
    said = run(folder)
    before = {p.name: p.read_bytes() for p in Path(said["run"]).iterdir() if p.suffix in (".jsonl", ".sqlite")}
    found = verify(folder, check=0)
    assert found["faults"] == []
    connection = sqlite3.connect(Path(said["run"]) / "store.sqlite")
    decisions = "ledger WHERE tag <> 'seal'"
    for table, name in (("calls", "calls"), ("records", "record ids"), (decisions, "ledger"), ("texts", "texts")):
        assert found["checked"][name] == connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
    assert {p.name: p.read_bytes() for p in Path(said["run"]).iterdir() if p.name in before} == before


TAMPERING = {
    "texts": "UPDATE texts SET text = text || '!' WHERE rowid = 2",
    "replies": "UPDATE calls SET reply = replace(reply, '-0.', '-1.') WHERE kind = 'score' AND rowid % 7 = 0",
    "calls": "UPDATE calls SET request = replace(request, 'user', 'User') WHERE rowid = 3",
    "a call gone": "DELETE FROM calls WHERE kind = 'score' AND rowid = (SELECT max(rowid) FROM calls)",
    "records": "UPDATE records SET body = replace(body, 'answer', 'Answer') WHERE tag = 'response'",
    "a record gone": "DELETE FROM records WHERE tag = 'comparison' AND rowid = (SELECT max(rowid) FROM records "
    "WHERE tag = 'comparison')",
    "ledger": 'UPDATE ledger SET body = replace(body, \'"verdict":"a"\', \'"verdict":"b"\') WHERE seq % 5 = 0',
    "walks": "UPDATE walks SET inputs = 'b2:other'",
}


@pytest.mark.parametrize("place", TAMPERING)
def test_verify_finds_what_was_changed(folder: Path, place: str) -> None:
    said = run(folder)
    connection = sqlite3.connect(Path(said["run"]) / "store.sqlite")
    assert connection.execute(TAMPERING[place]).rowcount > 0
    connection.commit()
    connection.close()
    assert verify(folder, check=1)["n_faults"] > 0


def test_verify_finds_a_changed_export(folder: Path) -> None:
    said = run(folder)
    pairs = Path(said["run"]) / "pairs.jsonl"
    pairs.write_bytes(pairs.read_bytes().replace(b"0.", b"1.", 1))
    assert any("pairs.jsonl" in fault for fault in verify(folder, check=1)["faults"])


def test_verify_refuses_an_unfinished_run(folder: Path) -> None:
    path = runs.write_config(folder, runs.config(folder))
    runs.cai("run", path, "budget.calls=5", "--quiet", check=3)
    assert "not finished" in runs.cai("run", path, "--verify", check=2).stderr


@pytest.mark.parametrize("limits", [(None, None), (5, 7), (1, 200)])
def test_prompts_stream_into_the_same_division(tmp_path: Path, limits: tuple[int | None, int | None]) -> None:
    """What is divided on disk is what the functions on lists give."""
    asked = [" ".join(Random(i % 100).choices("abcdefghijklmnopqrstuvwxyz", k=12)) for i in range(120)]
    rows = [{"prompt": text} for text in [*asked, *(f"{text} please" for text in asked[:30])]]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    tree = runs.config(tmp_path)
    tree["prompts"] = {
        "sources": [{"path": str(tmp_path / "p.jsonl")}],
        "held_out": 0.3,
        "near_duplicate": 0.8,
        "held_out_limit": limits[0],
        "train_limit": limits[1],
    }
    config = RunConfig.model_validate(tree)
    divided = Divided(config, None)
    read = promptset.load(config.prompts.sources)
    train, held_out = promptset.split(read.prompts, 0.3, salt="0")
    assert divided.n_read == 150 and divided.n_duplicates == read.n_duplicates > 0
    kept = list(divided.prompts("held_out"))
    assert [p for p in held_out if p in kept] == kept and len(kept) == min(len(held_out), limits[0] or 150)
    leaks = promptset.overlaps(train, kept, 0.8)
    clean = [p for p in train if p.id not in leaks]
    streamed = list(divided.prompts("train"))
    assert divided.n_leaks == len(leaks) and [p for p in clean if p in streamed] == streamed
    assert len(streamed) == min(len(clean), limits[1] or 150)


# -- settings and texts put back ---------------------------------------------------------------------------------------


def go_on(folder: Path, *, check: int = 0, **changes: Any) -> dict[str, Any]:
    """Run with a changed config in the same folder, accepting the change."""
    path = runs.write_config(folder, runs.config(folder, **changes))
    said = runs.cai("run", path, "--accept-changes", "--quiet", "--json", check=check)
    return json.loads(said.stdout) if said.stdout else {}


def audit_query(run: str, sql: str) -> list[dict[str, Any]]:
    """Return the rows of a query."""
    return json.loads(runs.cai("audit", "query", run, sql, "--limit", "100000", "--json").stdout)


@pytest.mark.parametrize("setting", [{"tie_margin": 0.45}, {"max_outside_mass": 0.0001}, {"mode": "cot"}])
def test_a_setting_put_back_brings_its_verdicts_back(folder: Path, setting: dict[str, Any]) -> None:
    first = run(folder)
    before = runs.exports(first["run"])
    changed = go_on(folder, judge=setting)
    assert runs.exports(first["run"]) != before
    back = go_on(folder)
    assert back["calls"]["made"] == 0 and runs.exports(first["run"]) == before
    assert back["accounting"] == first["accounting"] != changed["accounting"]
    assert verify(folder, check=0)["faults"] == []
    replayed = json.loads(runs.cai("audit", "replay", first["run"], "--json").stdout)
    assert replayed["differences"] == [] and replayed["not_replayable"] > 0
    # Audits count what stands, and show the rest.
    standing = {d.id for end in RunView(first["run"]).ended("walk") for d in end.standing}
    rows = audit_query(first["run"], "SELECT decision_id, counts FROM decisions")
    assert {row["decision_id"] for row in rows if row["counts"]} == standing and len(rows) > len(standing)
    summary = json.loads(runs.cai("audit", "summary", first["run"], "--json").stdout)
    assert sum(n for row in summary["verdicts"] for n in row["verdicts"].values()) == len(standing)


@pytest.mark.parametrize(
    ("setting", "cause"), [({"tie_margin": 0.45}, "settings"), ({"on_disagreement": "average"}, "fold rule")]
)
def test_what_turned_the_labels_is_named(folder: Path, setting: dict[str, Any], cause: str) -> None:
    rule = ["--judge", "random"]
    one = run(folder, "one", engine__args=rule)
    other = run(folder, "other", engine__args=rule, judge=setting)
    found = json.loads(runs.cai("audit", "compare", one["run"], other["run"], "--json").stdout)
    assert found["flips"] and set(found["causes"]) == {cause}


def test_an_edit_that_was_cut_short_and_taken_back_loses_nothing(folder: Path) -> None:
    first = run(folder)
    before = runs.exports(first["run"])
    path = folder / "constitution.yaml"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("Write the answer again, kindly.", "Make it kind."), encoding="utf-8")
    go_on(folder, check=3, budget={"calls": first["calls"]["made"] + 5})
    path.write_text(text, encoding="utf-8")
    back = go_on(folder)
    assert back["calls"]["made"] == 0 and back["accounting"] == first["accounting"]
    assert runs.exports(first["run"]) == before
    assert verify(folder, check=0)["faults"] == []


@pytest.mark.parametrize("gone", ["pairs.jsonl", "provenance.jsonl"])
def test_a_finished_run_whose_export_is_gone_is_not_done(folder: Path, gone: str) -> None:
    said = run(folder)
    before = runs.exports(said["run"])
    (Path(said["run"]) / gone).unlink()
    assert run(folder)["calls"]["made"] == 0
    assert runs.exports(said["run"]) == before


# -- what a server left without an answer ------------------------------------------------------------------------------

SHORT = {"phases": [{"name": "walk", "samples": 2, "pairs": ["samples"]}], "respond__max_tokens": 200}


def test_judgments_beyond_the_context_are_asked_for_again_once_it_is_longer(folder: Path) -> None:
    said = run(folder, **SHORT, engine__max_model_len=1000)
    invalid = [d.reason for end in RunView(said["run"]).ended("walk") for d in end.standing if d.verdict == "invalid"]
    assert set(invalid) == {"too_long"} and len(invalid) > 8
    # A run beside it is not lent what nobody has answered.
    beside = run(folder, "beside", **SHORT, run__reuse=True)
    assert beside["by_kind"]["made"]["score"] == len(invalid) and beside["accounting"] != said["accounting"]
    again = json.loads(
        runs.cai("retry", said["run"], "engine.max_model_len=16384", "--failed", "--quiet", "--json").stdout
    )
    assert again["by_kind"]["made"] == {"score": len(invalid)} and again["accounting"] == beside["accounting"]
    assert runs.exports(said["run"])[0] == runs.exports(beside["run"])[0]
    runs.run_json(folder / "run.yaml", "engine.max_model_len=16384")
    found = runs.cai("run", folder / "run.yaml", "engine.max_model_len=16384", "--verify", "--quiet", "--json")
    assert json.loads(found.stdout)["faults"] == []
    assert json.loads(runs.cai("audit", "verify", said["run"], "--json").stdout)["findings"] == []
    nothing = runs.cai("retry", said["run"], "--failed", check=2)
    assert "no judgment is invalid through its server" in nothing.stderr


def test_worked_examples_are_found_again_from_anywhere(folder: Path) -> None:
    """Only the config's own folder leads to them, and nobody who goes on with the run gives the config."""
    (folder / "shots.txt").write_text("Of two answers the shorter one was better.", encoding="utf-8")
    said = run(folder, **SHORT, judge={"few_shot": "shots.txt"}, engine__max_model_len=1000)
    again = runs.cai("retry", said["run"], "engine.max_model_len=16384", "--failed", "--quiet", "--json")
    assert json.loads(again.stdout)["by_kind"]["made"]["score"] > 8
    old, new = Path(said["run"]) / "constitution.yaml", folder / "new.yaml"
    new.write_text(old.read_text(encoding="utf-8").replace("Which answer is kinder?", "Which is kinder?"))
    found = json.loads(runs.cai("constitution", "impact", old, new, "--run", said["run"], "--json").stdout)
    assert found["asked"]["made"] > 0
