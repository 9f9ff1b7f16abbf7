"""The benchmarks: they run, compare what they say they compare, and tell a peer that is absent from one that failed."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import judge, orchestrator, peers, pipeline, plot, show, workload
from cai import constitution, promptset, shipped
from cai.cli.load import load_config
from cai.config import JudgeSection, PromptSource
from cai.engine.scripted.server import ScriptedProcess
from cai.pipeline.meter import Meter
from cai.records import Message, Prompt
from cai.stages.judge import Bench
from cai.templates import Fence, Templates

ROOT = Path(__file__).resolve().parent.parent


def bench(name: str, *arguments: str, check: int = 0) -> Any:
    """Run a benchmark as a command and return its JSON."""
    command = [sys.executable, "-m", f"bench.{name}", *arguments, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == check, done.stderr
    return json.loads(done.stdout)


def test_workload_is_sixteen_principles_and_as_many_prompts_as_asked(tmp_path: Path) -> None:
    workload.write(tmp_path, n_prompts=1000)
    loaded = constitution.load(tmp_path / "constitution.yaml")
    assert len(loaded.principles) == 16 and all(p.compare and p.critique for p in loaded.principles)
    read = promptset.load([PromptSource(path=str(tmp_path / "prompts.jsonl"))])
    assert (len(read.prompts), read.n_duplicates) == (1000, 0)


def test_orchestrator_compares_the_same_judgments(tmp_path: Path) -> None:
    inputs = tmp_path / "single"
    workload.write(inputs, n_prompts=2)
    config = workload.config(inputs, "run", engine={"fast_paths": False})
    took = orchestrator._in_process("bench.orchestrator", "--worker", str(config))
    assert took["judgments"] == 2 * 32 and took["calls"]["made"] == 2 * 34 and took["peak_mb"] > 1
    with orchestrator.ScriptedProcess(count_keys=True) as server:
        bare = orchestrator._in_process("bench.bare", "openai", server.url, str(inputs / "runs" / "run"), "40")
        assert server.stats()["judged"] == bare["requests"] == 40


def test_orchestrator_runs_again_and_verifies() -> None:
    found = bench("orchestrator", "--rounds", "0", "--memory", "--rerun", "3")
    assert found["rerun"]["again_calls"] == 0 and found["rerun"]["n_faults"] == 0
    assert found["rerun"]["verified"]["walks"] == 3


def test_incremental_asks_what_an_edit_touches() -> None:
    found = bench("incremental", "--prompts", "3")
    first, edits = found["first"]["made"], found["edits"]
    assert found["judge_share"] == pytest.approx(1 / 16) and found["other_calls"] == 0
    for edit, took in edits.items():
        assert took["planned"] == {k: n for k, n in took["made"].items() if n}, edit
    assert not edits["nothing"]["made"] and not edits["threshold pairs.min_confidence"]["made"]
    assert edits["template judgment.jinja"]["made"] == {"score": first["score"]}
    assert edits["template revision.jinja"]["made"]["generate"] == 2 * 3


def test_the_floor_is_every_request_of_the_walk_in_its_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workload.write(tmp_path, n_prompts=3)
    phase = {"name": "walk", "samples": 1, "revisions": 1, "pairs": ["revision"]}
    config, near = load_config(str(workload.config(tmp_path, "walk", phases=[phase])), [])
    with pipeline.recording():
        asyncio.run(pipeline.Walking(config, near=near, meter=Meter()).run())
    sent = list(pipeline.LOG)
    by_prompt = {name: [i for i, each in enumerate(sent) if each.prompt == name] for name in {s.prompt for s in sent}}
    assert len(by_prompt) == 3
    for answer, critique, revision, *judgments in by_prompt.values():
        assert [sent[i].after for i in (answer, critique, revision)] == [[], [answer], [answer, critique]]
        assert judgments and all({answer, critique, revision} <= set(sent[i].after) for i in judgments)

    @asynccontextmanager
    async def again(*_: Any) -> AsyncIterator[Any]:
        with ScriptedProcess() as server:
            yield server

    monkeypatch.setattr(pipeline, "started", again)
    assert asyncio.run(pipeline.floor(tmp_path, "floor")) > 0, "a request that fails there would be raised"
    with pytest.raises(SystemExit, match="sent nothing that was recorded"), pipeline.recording():
        pass


def test_principle_first_asks_the_same_words() -> None:
    prompt = Prompt(messages=(Message(role="user", content="Why?"),))
    texts = Templates(shipped.find("prompts"))
    principles = constitution.load(shipped.find("constitutions/harmless.yaml")).principles
    settings = Bench(principles, texts, JudgeSection(), Fence(b"x"), "judge", 0)
    (group, _) = judge.groups(judge.Pair(prompt, "One.", "Two."), settings)
    for tail, one in zip(group.tails, judge.principle_first(group), strict=True):
        (asked,) = one.tails
        assert asked[0].text.startswith("Principle:") and asked[-1] == tail[-1]
        assert sorted(asked[0].text.split()) == sorted((tail[0].text + " " + group.head[0].text).split())


def test_absent_peers_are_skipped_with_a_clear_line(tmp_path: Path) -> None:
    away = str(tmp_path / "none" / "bin" / "python")
    found = bench("peers", "--distilabel", away, "--designer", away)
    assert found["times"] == {} and found["rounds"] == []
    assert [line.partition(":")[0] for line in found["skipped"]] == ["distilabel", "designer"]
    assert all("skipped" in row[0] for row in peers.rows(found))


def test_peers_are_asked_the_same_words_in_their_order_or_ours() -> None:
    same, last, short = (peers.spec("", "", 1, judging)["judge"] for judging in peers.JUDGING)
    assert sorted(same.split()) == sorted(last.split())
    assert same.index("{{ principle }}") < same.index("{{ a }}") < same.index("{{ b }}") < last.index("{{ principle }}")
    assert short.startswith("{{ principle }}") and len(short.split()) < len(same.split()) / 3


def test_rounds_of_another_job_do_not_count(tmp_path: Path) -> None:
    keep = tmp_path / "rounds.json"
    keep.write_text(json.dumps({"job": "b2:00", "rounds": [{"cai": 1.0, "designer": 9.0}]}))
    with pytest.raises(SystemExit, match=r"rounds.json: holds rounds of another job \(b2:00, not b2:"):
        asyncio.run(peers.measure(2, 1, {"designer": Path(sys.executable)}, keep))


@pytest.mark.parametrize(
    ("code", "short", "complaint"),
    [(0, 0, ""), (1, 0, "(?s)designer failed:.*out of memory"), (0, 1, "designer made 63 of 64 judgments:")],
)
def test_a_peer_that_fails_or_judges_too_little_is_not_passed_over(
    code: int, short: int, complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @asynccontextmanager
    async def started(folder: Path, name: str) -> AsyncIterator[SimpleNamespace]:
        yield SimpleNamespace(url="http://127.0.0.1:9", model_name="model")

    def job(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        asked = json.loads(Path(command[-1]).read_text(encoding="utf-8"))
        told = {"seconds": 1.0, "judgments": 2 * len(asked["principles"]) * len(asked["rows"]) - short}
        return subprocess.CompletedProcess(command, code, json.dumps(told), "out of memory" * code)

    monkeypatch.setattr(peers, "started", started)
    monkeypatch.setattr(subprocess, "run", job)
    asked = peers._peer(Path(sys.executable), "designer", tmp_path, 2, "same")
    if complaint:
        with pytest.raises(SystemExit, match=complaint):
            asyncio.run(asked)
    else:
        assert asyncio.run(asked)["seconds"] == 1.0


RESULTS: dict[str, Any] = {
    "judge": {"times": {"principle last, token ids in batches": 12.0}},
    "pipeline": {"over_floor": 2.2},
    "incremental": {"judge_share": 0.0625},
    "orchestrator": {"memory": {"growth_mb": -3.0, "sizes": {"10000": {}, "200000": {}}}, "rerun": {"again_s": 2.5}},
}


def test_the_plot_tells_what_reaches_its_aim() -> None:
    bars = {bar.what: bar.ratio for bar in plot.bars(RESULTS)}
    assert bars["judging, over principle-first chat"] == 2.0
    assert bars["whole walk, over its floor"] == 0.5
    assert bars["a finished run again"] == 2.0 and bars["memory, 200,000 prompts over 10,000"] > 1
    drawn = ET.fromstring(plot.draw(plot.bars(RESULTS), "A title & more"))
    rects = drawn.findall("{http://www.w3.org/2000/svg}rect")[1:]
    assert len(rects) == len(bars)
    middle = plot._place(1.0)
    for bar, rect in zip(plot.bars(RESULTS), rects, strict=True):
        starts, width = float(rect.get("x", "")), float(rect.get("width", ""))
        assert starts >= 0 and starts + width <= plot._WIDTH
        assert (starts < middle - 1) == (bar.ratio < 1)


def test_results_that_were_cut_short_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    assert show.kept(path) == {}
    path.write_text('{"judge": ')
    with pytest.raises(SystemExit, match=r"results\.json: not whole JSON .*; remove it and measure again"):
        show.kept(path)


def test_results_and_plot_in_the_docs_are_of_one_make() -> None:
    """What is drawn in docs/ is drawn from the kept results."""
    results = json.loads((ROOT / "bench" / "results.json").read_text(encoding="utf-8"))
    for bar in plot.bars(results):
        assert plot.escape(bar.told) in (ROOT / "docs" / "benchmarks.svg").read_text(encoding="utf-8"), bar.what
