"""Whoever sits as judge, a panel or a reward model too, every command that asks or tells of a judge works with it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cai.assay import probes
from cai.engine.model import Reply, Reward
from cai.evaluate.judging import reliability
from cai.manifest import Manifest
from cai.pipeline import judges
from cai.trail import RunView
from tests import runs
from tests.tiny import make_model
from tests.view_fixture import serving

REWARD = {"checkpoint": "words"}
JUDGES: dict[str, dict[str, Any]] = {
    "reward_model": {"mode": "reward_model", "reward_model": REWARD},
    "panel": {
        "mode": "panel",
        "prior": "content_free",
        "canary": True,
        "panel": {"members": [{}, {"mode": "rubric"}, {"mode": "reward_model", "model": REWARD}]},
    },
}
NAMES = {"reward_model": "words", "panel": "mean of logprob:scripted"}
TEXT = """\
schema: 1
name: sat over
principles:
  - id: kind
    title: Is kind
    critique: Say where the answer is unkind.
    revision: Write the answer again, kindly.
    compare: Which answer, A or B, is kinder?
    rubric: [{ask: Is it kind?}, {ask: Is it curt?, weight: -1}]
    tests: [{prompt: Why?, a: It is so., b: It is so since it was so., expect: a}]
  - id: clear
    title: Is clear
    critique: Say where the answer is unclear.
    revision: Write the answer again, clearly.
    compare: Which answer, A or B, is clearer?
"""


class Words:
    """A reward model that pays for words, in the place of one that is loaded from a folder."""

    def __init__(self, *_: Any) -> None:
        self.identity = "words"

    async def reward(self, request: Reward) -> Reply:
        return Reply(reward=0.1 * len(request.answer.split()))


@pytest.fixture(scope="module", params=list(JUDGES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Any]]:
    """A mode, the folder of a project, and what a run in it told beside what was planned."""
    folder = tmp_path_factory.mktemp(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(judges, "LazyReward", Words)
        patch.setattr(judges, "reward_identity", lambda section: "words")
        patch.setattr(judges, "is_here", lambda *_: True)
        runs.write_inputs(folder, n_prompts=4)
        (folder / "constitution.yaml").write_text(TEXT, encoding="utf-8")
        config = runs.write_config(folder, runs.config(folder, judge=JUDGES[request.param], run__reuse=True))
        planned = json.loads(runs.cai("plan", config, "--json").stdout)
        yield request.param, config, (planned, runs.run_json(config))


def test_the_plan_is_what_is_asked_and_the_run_tells_who_judged(made: Any) -> None:
    mode, config, (planned, told) = made
    least, most = planned["requests"]
    assert least <= told["calls"]["made"] <= most
    assert mode == "panel" or least == most, "a reward an answer, however many principles and pairs there are"
    assert told["accounting"]["failed"] == told["accounting"]["invalid"] == 0
    page = Path(told["report"]).read_text(encoding="utf-8")
    assert NAMES[mode] in page and "Critic</dt>" in page
    assert ("Leaning, nats" in page) == (mode == "panel")
    kept = json.loads(runs.cai("plan", config, "--json").stdout)["kept"]
    assert not any(kept["asked"].values()) and sum(kept["reused"].values()) > 0


@pytest.mark.parametrize(
    "words", ["run CONFIG --verify", "audit replay RUN", "audit summary RUN", "audit compare RUN RUN", "report RUN",
              "card RUN --kind dataset", "constitution conflicts RUN"],
)  # fmt: skip
def test_what_reads_a_run_reads_it(made: Any, words: str) -> None:
    _, config, _ = made
    place = {"CONFIG": config, "RUN": config.parent / "runs" / "run"}
    runs.cai(*(place.get(word, word) for word in words.split()))


def test_whoever_sat_is_asked_again_by_itself(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reward model that has changed its mind turns its own verdicts round, and those of a panel that it decides."""
    mode, config, _ = made
    run = config.parent / "runs" / "run"
    before = (run / "store.sqlite").read_bytes()
    asked = ("audit", "replay", run, "--live", "500")
    with RunView(run) as view:
        n = sum(len(e.decisions) for e in view.ended("walk"))
    same = json.loads(runs.cai(*asked, "--json").stdout)["live"]
    assert same["n_able"] == same["agreed"] == n > 10 and same["largest"] < 1e-9 and same["low"] > 0.8

    async def averse(self: Words, request: Reward) -> Reply:
        return Reply(reward=-9.0 * len(request.answer.split()))

    monkeypatch.setattr(Words, "reward", averse)
    other = json.loads(runs.cai(*asked, "--json").stdout)["live"]
    n_turned = len({d["decision_id"] for d in other["differences"]})
    assert 0 < n_turned == n - other["agreed"] and (other["agreed"] == 0) == (mode == "reward_model")
    monkeypatch.setattr(judges, "reward_identity", lambda section: "others")
    monkeypatch.setattr(Words, "__init__", lambda self, *_: setattr(self, "identity", "others"))
    assert "'words' judged here, and its config now leads to" in runs.cai(*asked, check=2).stderr
    assert (run / "store.sqlite").read_bytes() == before


def named(p_a: float) -> str:
    """The arm that a probability names; neither at one half."""
    return "" if p_a == 0.5 else "a" if p_a > 0.5 else "b"


def test_how_far_a_panel_is_divided_is_a_question_that_is_answered(made: Any) -> None:
    mode, config, _ = made
    folder = config.parent / "runs" / "run"
    told = json.loads(runs.cai("audit", "query", folder, "panel", "--json").stdout)
    with RunView(folder) as run:
        modes = {id_: question.mode for id_, question in run.questions.items()}
        judgments = [d for e in run.ended("walk") for d in e.decisions if modes[d.question_id] == "panel"]
    sides: dict[str, list[tuple[str, str]]] = {}  # by member: whom it named, and whom the panel
    for judgment in judgments:
        for part in (p for p in judgment.parts if "/" not in p.name.partition(" ")[0]):
            sides.setdefault(part.name, []).append((named(part.value), judgment.verdict))
    assert {row["member"]: row["n"] for row in told} == {name: len(said) for name, said in sides.items()}
    assert len(told) == (3 if mode == "panel" else 0)
    for row in told:
        along = [side == verdict for side, verdict in sides[row["member"]] if side and verdict != "tie"]
        assert row["with_panel"] == pytest.approx(sum(along) / len(along)) and row["low"] <= row["with_panel"]
    divided = [len({side for side, _ in said if side}) > 1 for said in zip(*sides.values(), strict=True)]
    assert {row["divided"] for row in told} == ({sum(divided) / len(divided)} if divided else set())


def test_readers_name_the_judge_and_the_critic(made: Any) -> None:
    mode, config, _ = made
    with RunView(config.parent / "runs" / "run") as run:
        assert run.models["judge"].startswith(NAMES[mode]) and "critic" in run.models
        assert all(isinstance(identity, str) for identity in run.models.values())
        assert {q.judge for q in run.questions.values()} == {run.models["judge"]}
        told = reliability(run, "walk")["judge"]
    has_position = mode == "panel"
    assert (told["consistency"] is not None) == (told["picked_first"] is not None) == has_position


def test_what_each_of_them_said_is_shown_with_the_decision(made: Any) -> None:
    mode, config, _ = made
    folder = config.parent / "runs"
    with RunView(folder / "run") as run:
        kind = next(id_ for id_, q in run.questions.items() if q.principle_id == "kind")
        judgment = next(d for e in run.ended("walk") for d in e.decisions if d.question_id == kind)
    said = runs.cai("audit", "why", folder / "run", judgment.comparison_id).stdout
    with serving(folder) as served:
        page = served.get(f"/runs/run/decision/{judgment.id}").text
        assert served.get("/runs/run").status == 200
    assert judgment.parts and all(part.name in said and part.name in page for part in judgment.parts)
    assert all(part.call_key in page for part in judgment.parts)
    assert {part.name for part in judgment.parts} >= ({"a", "b"} if mode == "reward_model" else {"2/a/1", "3/b"})


def test_it_is_checked_and_a_run_tells_the_check(made: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    mode, config, _ = made
    gold, *rest = probes.load(probes.shipped_folder())
    monkeypatch.setattr(probes, "load", lambda folder: (gold[:2], *rest))  # fewer say as much here
    told = json.loads(runs.cai("judge", "check", config, "--json", "--quiet", check=None).stdout)
    assert "words" in told["judge"] and told["by_letters"] == (mode == "panel")
    notes = runs.run_json(config, f"run.dir={config.parent / 'runs' / 'told'}")["notes"]
    assert any(note.startswith("the judge passed") and "other settings" not in note for note in notes)


def test_it_is_measured_against_people(made: Any, tmp_path: Path) -> None:
    mode, config, _ = made
    rows = [{"prompt": "Why?", "response_a": "word " * n, "response_b": "word", "label": "A"} for n in range(2, 12)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ("judge", "bench", config, "--data", tmp_path / "pairs.jsonl", "--json", "--quiet", "--out", tmp_path)
    told = json.loads(runs.cai(*asked, "--by", "constitution").stdout)
    assert told["judge"].startswith(NAMES[mode]) and told["n"] == 10
    if mode == "reward_model":
        assert told["overall"]["averaged"]["value"] == 1 and told["position"] is None


def test_worked_examples_are_put_to_it(made: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mode, config, _ = made
    monkeypatch.setenv("CAI_CACHE", str(tmp_path))
    asked = ("constitution", "test", config.parent / "constitution.yaml", "--config", config, "--json", "--quiet")
    told = json.loads(runs.cai(*asked, check=None).stdout)
    assert told["asked"]["judge"].startswith(NAMES[mode]) and told["whole"]["tests"] == 1
    if mode == "reward_model":
        assert told["asked"]["made"] == 2, "a reward model has no words about what failed"
        assert [failure["words"] for failure in told["failures"]] == [""]


def test_an_edit_is_previewed_under_it(made: Any, tmp_path: Path) -> None:
    mode, config, _ = made
    (tmp_path / "new.yaml").write_text(TEXT.replace("is clearer?", "is the clearer one?"), encoding="utf-8")
    run = config.parent / "runs" / "run"
    asked = ("constitution", "impact", run / "constitution.yaml", tmp_path / "new.yaml", "--run", run, "--quiet")
    told = json.loads(runs.cai(*asked, "--json").stdout)
    assert told["judge"].startswith(NAMES[mode]) and (told["asked"]["made"] > 0) == (mode == "panel")
    if mode == "panel":
        said = runs.cai(*asked, "judge.panel.rule=majority", check=2).stderr
        assert "name the same judge" in said
    (tmp_path / "new.yaml").write_text(TEXT.replace("Say where the answer is unkind.", "Be strict."), encoding="utf-8")
    again = json.loads(runs.cai(*asked, "--json").stdout)["regenerate"]
    per_pair = {"reward_model": 2, "panel": (2 + 2 * 2) + 2 + 2}[mode]
    assert again["calls"] == per_pair * again["comparisons"] > 0


def test_suggestions_need_somebody_who_reads_principles(made: Any, tmp_path: Path) -> None:
    mode, config, _ = made
    rows = [{"prompt": f"Why {n}?", "chosen": "word " * n, "rejected": "word"} for n in range(2, 6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    asked = ("constitution", "suggest", "--pairs", tmp_path / "pairs.jsonl", "--config", config, "--quiet")
    done = runs.cai(*asked, check=None)
    assert (done.returncode == 2 and "reads no principle" in done.stderr) == (mode == "reward_model")


def test_policies_contest_under_it(made: Any) -> None:
    mode, config, _ = made
    suite = config.parent / "suite.yaml"
    tree = {"name": "s", "description": "For tests.", "prompts": [{"path": str(config.parent / "prompts.jsonl")}],
            "constitution": str(config.parent / "constitution.yaml"), "measure": ["wins"], "samples": 1,
            "judge": JUDGES[mode]}  # fmt: skip
    suite.write_text(json.dumps(tree), encoding="utf-8")
    policies = ("--policy", "one=scripted", "--policy", "two=scripted")
    engine = ("engine.kind=scripted", "engine.max_model_len=16384")
    told = json.loads(runs.cai("eval", "--suite", suite, *policies, *engine, "--json", "--quiet").stdout)
    assert told["judge"].startswith(NAMES[mode])


def test_a_runs_own_policies_contest_under_it(made: Any) -> None:
    mode, config, _ = made
    folder = config.parent
    run = shutil.copytree(folder / "runs" / "run", folder / "trained" / "run")
    trained = make_model(run / "checkpoints" / "late" / "model")
    Manifest(run).save(policies=[{"name": "base"}, {"name": "late", "checkpoint": str(trained), "identity": "late"}])
    rows = [{"prompt": f"How is bread of kind {kind} baked?"} for kind in ("rye", "oat")]
    (folder / "asked.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    tree = {"name": "t", "description": "For tests.", "prompts": [{"path": str(folder / "asked.jsonl")}],
            "constitution": str(folder / "constitution.yaml"), "measure": ["wins"]}  # fmt: skip
    (folder / "of-run.yaml").write_text(json.dumps(tree), encoding="utf-8")
    asked = ("eval", run, "--suite", folder / "of-run.yaml", "--json", "--quiet")
    told = json.loads(runs.cai(*asked).stdout)
    assert told["judge"].startswith(NAMES[mode]) and told["against"][0]["wins"]["settled"]["comparisons"] == 2
    with RunView(told["folder"]) as contest:
        assert {question.judge for question in contest.questions.values()} == {told["judge"]}
    said = runs.cai(*asked, "--judge", trained, check=2 if mode == "reward_model" else 0)
    assert ("nobody would ask it" in said.stderr) == (mode == "reward_model")
