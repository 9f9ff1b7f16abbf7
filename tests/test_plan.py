"""What a plan says beforehand is what a run then asks, whoever judges; and nobody is asked for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai.assay import probes
from cai.engine.model import Reply, Reward
from tests import runs

JUDGED = runs.CONSTITUTION.replace(
    runs.CONSTITUTION[runs.CONSTITUTION.index("  - id: brief") : runs.CONSTITUTION.index("  - id: kind")], ""
).replace(
    "    compare: Which answer is clearer?\n",
    "    compare: Which answer is clearer?\n    rubric: [{ask: Is it clear?}, {ask: Is it short?}]\n",
)
"""A constitution under which no check decides."""
MODES: dict[str, dict[str, Any]] = {
    "letters with their leaning taken off": {"prior": "content_free"},
    "reasons": {"mode": "cot", "prior": "content_free", "cot": {"samples": 2}},
    "grades": {"mode": "score"},
    "rubric": {"mode": "rubric", "prior": "content_free"},
    "canaries": {"canary": True},
    "some principles": {"principles": 1, "prior": "content_free"},
    "panel": {
        "mode": "panel",
        "prior": "content_free",
        "panel": {"members": [{}, {"mode": "rubric"}, {"mode": "score"}]},
    },
}
EXACT = ("letters with their leaning taken off", "grades", "rubric", "panel")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    runs.write_inputs(tmp_path, n_prompts=4)
    (tmp_path / "constitution.yaml").write_text(JUDGED, encoding="utf-8")
    return tmp_path


def planned(path: Path, *overrides: str) -> dict[str, Any]:
    return json.loads(runs.cai("plan", path, *overrides, "--json").stdout)


@pytest.mark.parametrize("mode", MODES)
def test_every_way_of_judging_is_counted(folder: Path, mode: str) -> None:
    path = runs.write_config(folder, runs.config(folder, judge=MODES[mode]))
    said = planned(path)
    least, most = said["requests"]
    done = runs.run_json(path)
    made = done["calls"]["made"]
    assert least <= made <= most
    if mode in EXACT:
        assert least == made == most
    assert len(said["examples"]) == 3
    if mode == "panel":
        assert " + rubric:scripted: + " in Path(done["report"]).read_text(encoding="utf-8")


@pytest.fixture
def rewarded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A config whose judge is a reward model, asked about three samples in four pairs and about revisions."""
    (folder / "rm").mkdir()
    (folder / "rm" / "config.json").write_text("{}", encoding="utf-8")

    async def reward(_: Any, request: Reward) -> Reply:
        return Reply(reward=float(len(request.answer.split())))

    monkeypatch.setattr("cai.pipeline.judges.LazyReward.reward", reward)
    phase = {"name": "walk", "samples": 3, "revisions": 1, "pairs": ["revision", "samples"], "max_pairs": 2}
    judge = {"mode": "reward_model", "reward_model": {"checkpoint": str(folder / "rm")}}
    return runs.write_config(folder, runs.config(folder, judge=judge, phases=[phase], run__reuse=True))


def test_a_reward_model_is_asked_once_about_an_answer(rewarded: Path, folder: Path) -> None:
    said = planned(rewarded)
    least, most = said["requests"]
    done = runs.run_json(rewarded)
    assert least == most == done["calls"]["made"]
    assert said["phases"][0]["reward"] == [done["by_kind"]["made"]["reward"]] * 2
    with runs.every_store_closed():
        again = planned(rewarded, f"run.dir={folder / 'runs' / 'other'}")["kept"]
    assert sum(again["asked"].values()) == 0 and sum(again["reused"].values()) > 0
    other = (f"run.dir={folder / 'runs' / 'other'}", "run.seed=1")
    foreseen = planned(rewarded, *other)["kept"]["asked"]
    assert foreseen["reward"] == runs.run_json(rewarded, *other)["by_kind"]["made"]["reward"] > 0


def test_a_plan_of_an_enforced_check_counts_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gold, texts, data_id = probes.load(probes.shipped_folder())
    monkeypatch.setattr(probes, "load", lambda _: (gold[:3], texts, data_id))
    path = runs.write_config(folder, runs.config(folder, judge={"check": {"enforce": True}, "prior": "content_free"}))
    least, most = planned(path)["requests"]
    assert least == most == runs.run_json(path)["calls"]["made"]


def test_no_model_that_was_never_here_is_looked_up(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = runs.write_config(folder, runs.config(folder, run__reuse=True))
    runs.run_json(path)
    asked: list[Any] = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *words, **_: asked.append(words))
    names = ("nobody/model", "smollm2-135m-instruct")
    monkeypatch.setenv("CAI_CACHE", str(folder / "empty"))
    for name in names:
        said = planned(path, f"models.policy.checkpoint={name}", "engine.kind=vllm", f"run.dir={folder}/runs/other")
        assert said["kept"] is None and said["requests"][1] > 0
    assert asked == []


def test_the_first_policys_held_out_answers_are_foreseen(folder: Path) -> None:
    phase = {"name": "walk", "samples": 2, "revisions": 1, "pairs": ["samples"], "train": "dpo"}
    tree = runs.config(folder, run__reuse=True, phases=[phase], prompts__held_out=0.5)
    runs.run_json(runs.write_config(folder, runs.config(folder, run__reuse=True), "first.yaml"))
    said = planned(runs.write_config(folder, tree | {"run": {"dir": str(folder / "runs" / "second")}}))
    assert said["kept"]["asked"]["generate"] == 2 * said["prompts"]["held_out"] > 0  # the walk itself is kept


def test_what_is_shown_is_what_is_sent(folder: Path) -> None:
    shots = folder / "shots.txt"
    shots.write_text("Example: the kinder one wins.", encoding="utf-8")
    path = runs.write_config(folder, runs.config(folder, judge={"mode": "score", "few_shot": str(shots)}))
    shown = {e["stage"]: e["text"] for e in planned(path)["examples"]}
    assert set(shown) == {"respond", "critique", "judge"}
    assert "from 1 (as bad as can be) to 9" in shown["judge"] and "the kinder one wins" in shown["judge"]
    assert "Critique request:" in shown["critique"] and "Tell me about thing number" in shown["respond"]
    checks_only = JUDGED[: JUDGED.index("  - id: kind")] + runs.CONSTITUTION[runs.CONSTITUTION.index("  - id: brief") :]
    checks_only = checks_only[: checks_only.index("  - id: kind")]
    (folder / "constitution.yaml").write_text(checks_only, encoding="utf-8")
    shown = {e["stage"]: e["text"] for e in planned(path)["examples"]}
    assert "Revision request:" in shown["revise"] and "checks alone decide" in shown["judge"]
