"""Phases and rounds: what is trained on what, and which policy answers. Training itself is played: it takes seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai import yamlfile
from cai.config import RunConfig
from cai.trail import RunView
from tests import runs
from tests.played import play_trainings, write_base

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    return play_trainings(monkeypatch)


def a_run(folder: Path, *, held_out_samples: int = 1, **changes: Any) -> Path:
    runs.write_inputs(folder, n_prompts=8)
    tree = runs.config(folder, prompts__held_out=0.3, evaluate={"samples": held_out_samples}, **changes)
    tree["models"]["policy"]["checkpoint"] = str(write_base(folder / "base"))
    return runs.write_config(folder, tree)


def test_every_round_starts_from_the_policy_that_the_last_one_left(tmp_path: Path, trained: list[Any]) -> None:
    phases = [
        {"name": "sl", "revisions": 1, "train": "sft"},
        {"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"},
    ]
    path = a_run(tmp_path, phases=phases, rounds=2)
    plan = json.loads(runs.cai("plan", path, "--json").stdout)
    said = runs.run_json(path)
    checkpoints = tmp_path / "runs" / "run" / "checkpoints"
    assert [(t["phase"], t["method"]) for t in trained] == [
        ("sl-1", "sft"), ("rl-1", "dpo"), ("sl-2", "sft"), ("rl-2", "dpo"),
    ]  # fmt: skip
    bases = [str(tmp_path / "base"), *(str(checkpoints / name / "model") for name in ("sl-1", "rl-1", "sl-2"))]
    assert [t["base"] for t in trained] == bases
    run = RunView(said["run"])
    policies = run.manifest["policies"]
    assert [p["name"] for p in policies] == ["base", "sl-1", "rl-1", "sl-2", "rl-2"]
    assert len({p["identity"] for p in policies}) == 5
    assert [phase["name"] for phase in plan["phases"]] == ["sl-1", "rl-1", "sl-2", "rl-2", "evaluate"]
    assert 0 < said["calls"]["made"] <= plan["requests"][1]
    first, last = (run.call(answer.call_key) for answer in _held_out_answers(run))
    assert first[0]["model"] == policies[0]["identity"] and last[0]["model"] == policies[-1]["identity"]
    assert runs.run_json(path)["calls"] == {"made": 0, "reused": 0} and len(trained) == 4


def _held_out_answers(run: RunView) -> list[Any]:
    _, prompt = next(run.prompts("held_out"))
    return [run.records(f"evaluate/{arm}", prompt.id)["response"][0] for arm in ("before", "after")]


def test_the_short_road_trains_once_on_revisions_that_were_judged(tmp_path: Path, trained: list[Any]) -> None:
    config = yamlfile.load(ROOT / "configs" / "short-road.yaml", RunConfig).value
    phases = [phase.model_dump(mode="json") for phase in config.phases]
    said = runs.run_json(a_run(tmp_path, phases=phases, rounds=config.rounds))
    assert [(t["phase"], t["method"]) for t in trained] == [("short", "dpo")]
    assert trained[0]["n_rows"] == said["accounting"]["rows"] > 0
    ends = list(RunView(said["run"]).ended("short"))
    assert {end.comparison.source for end in ends} == {"revision"}
    assert all(end.decisions for end in ends), "the judge decides, never the construction"


def test_a_policy_without_weights_is_refused_before_anything_is_asked(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    phases = [{"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"}]
    path = runs.write_config(tmp_path, runs.config(tmp_path, url="http://127.0.0.1:9", phases=phases))
    said = runs.cai("run", path, check=2).stderr
    assert "phase 'rl' trains the policy, of which only a 'base_url' is known" in said and "models.policy" in said


def test_a_run_is_trained_anew_from_wherever_its_folder_is_named(
    tmp_path: Path, trained: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    phases = [{"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"}]
    monkeypatch.chdir(tmp_path)
    runs.run_json(a_run(tmp_path, phases=phases, run__dir="runs/run", held_out_samples=0))
    monkeypatch.chdir(tmp_path / "runs")
    said = json.loads(runs.cai("train", "run", "--phase", "rl", "--json", "--quiet").stdout)
    assert said["retrained"] == ["rl"] and said["run"] == "run" and len(trained) == 2
    assert not (tmp_path / "runs" / "runs").exists()


def test_the_command_of_the_report_makes_the_same_run_from_a_config_in_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = tmp_path / "mine"
    runs.write_inputs(mine, n_prompts=4)
    tree = runs.config(mine, run__dir="runs/run")
    tree["constitution"], tree["prompts"]["sources"] = "constitution.yaml", [{"path": "prompts.jsonl"}]
    monkeypatch.chdir(tmp_path)
    first = runs.run_json(runs.write_config(mine, tree))
    command = json.loads(Path("runs/run/report.json").read_text())["reproduce"]["command"]
    again = json.loads(runs.cai(*command.split()[1:], "--json", "--quiet").stdout)
    assert again["run"] != first["run"] and runs.exports(again["run"]) == runs.exports(first["run"])
