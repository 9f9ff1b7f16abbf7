"""The long road on a tiny model: SFT on revisions, DPO on that policy's samples, evaluation; then a person overrules.

The scripted server answers for every policy, so that what is tested is the road and not the model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cai import evaluate
from cai.manifest import now
from cai.records import Override
from cai.store import ledger, schema
from cai.trail import RunView
from tests import runs
from tests.tiny import make_model

TRAINER = {
    "learning_rate": 1e-3,
    "max_steps": 3,
    "batch_size": 4,
    "micro_batch_size": 4,
    "max_length": 256,
    "lora": {"r": 4},
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict:
    folder = tmp_path_factory.mktemp("long")
    runs.write_inputs(folder, n_prompts=30)
    base = make_model(folder / "base")
    tree = runs.config(folder)
    tree["models"]["policy"]["checkpoint"] = str(base)
    tree["prompts"]["held_out"] = 0.4
    tree["phases"] = [
        {"name": "sl", "samples": 1, "revisions": 2, "train": "sft"},
        {"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"},
    ]
    watch = {"every": 2, "prompts": 3, "max_new_tokens": 4}
    tree["train"] = {"sft": TRAINER, "dpo": {**TRAINER, "watch": watch}, "device": "cpu"}
    tree["evaluate"] = {"samples": 2}
    path = runs.write_config(folder, tree)
    with pytest.MonkeyPatch.context() as patch:
        connections = watch_connections(folder, patch)
        done = runs.cai("run", path, "--json", "--quiet", apart=True)
    return json.loads(done.stdout) | {"config": str(path), "connections": str(connections)}


WATCH = """
import os, sys

def hear(event, arguments, log={log!r}):
    if event == "socket.connect":
        told = arguments[1][0] if isinstance(arguments[1], tuple) else "file"
    elif event == "socket.getaddrinfo":
        told = arguments[0]
    else:
        return
    handle = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(handle, (str(told) + "\\n").encode())
    os.close(handle)

sys.addaudithook(hear)
"""


def watch_connections(folder: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make every Python process that is started write down whom it connects to; return the file."""
    log, place = folder / "connections", folder / "site"
    place.mkdir()
    (place / "sitecustomize.py").write_text(WATCH.format(log=str(log)))
    patch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))
    return log


def test_nothing_but_this_machine_is_spoken_to(said: dict) -> None:
    """Run, servers, both trainings, evaluation and report: every connection and every name looked up."""
    spoken_to = set(Path(said["connections"]).read_text().split())
    assert spoken_to and spoken_to <= {"127.0.0.1", "localhost", "::1", "file", "None"}


def test_both_phases_leave_checkpoints_that_name_their_rows(said: dict) -> None:
    run = RunView(said["run"])
    assert [p["name"] for p in run.manifest["policies"]] == ["base", "sl", "rl"]
    for phase, method in (("sl", "sft"), ("rl", "dpo")):
        folder = Path(said["run"]) / "checkpoints" / phase
        manifest = json.loads((folder / "checkpoint.json").read_text())
        assert manifest["method"] == method and manifest["rows_id"].startswith("b2:")
        assert (folder / "model" / "model.safetensors").exists()
        assert not list(folder.rglob("*.bin")) and not list(folder.rglob("*.pt"))
    assert said["stale"] == []


def test_each_policy_is_another_model(said: dict) -> None:
    identities = [p["identity"] for p in RunView(said["run"]).manifest["policies"]]
    assert len(set(identities)) == 3


def test_held_out_prompts_are_answered_by_both_policies_and_by_no_other_phase(said: dict) -> None:
    run = RunView(said["run"])
    held_out = [prompt for _, prompt in run.prompts("held_out")]
    assert len(held_out) == said["prompts"]["held_out"] > 5
    for prompt in held_out:
        for arm in ("before", "after"):
            assert len(run.records(f"evaluate/{arm}", prompt.id)["response"]) == 2
        assert not run.records("sl", prompt.id) and not run.records("rl", prompt.id)


def test_the_last_answers_are_weighed_against_the_first_policys_own(said: dict) -> None:
    measured = evaluate.measure(RunView(said["run"]))
    likely = measured["likelihood"]
    assert likely["before_under_before"]["n_prompts"] == likely["after_under_before"]["n_prompts"] > 5
    gap = likely["after_under_before"]["value"] - likely["before_under_before"]["value"]
    assert likely["change_under_before"]["value"] == pytest.approx(gap)
    assert "log-likelihood" in [sign["name"] for sign in measured["collapse"]["signs"]]


def test_the_report_stands_alone(said: dict) -> None:
    page = (Path(said["run"]) / "report.html").read_text(encoding="utf-8")
    assert "<html" in page and "http://" not in page.replace("http://www.w3.org", "") and "<script src" not in page
    assert "quick" in page or "small" in page


def test_the_status_tells_of_both_trainings(said: dict) -> None:
    state = json.loads(runs.cai("status", said["run"], "--json").stdout)
    told = [{"phase": phase, "step": 3, "steps": 3, "ended": True} for phase in ("rl", "sl")]
    assert (state["state"], state["at_work"], state["trainings"]) == ("done", False, told)
    assert "rl: trained, step 3 of 3" in runs.cai("status", said["run"]).stdout


def test_running_again_asks_and_trains_nothing(said: dict) -> None:
    again = runs.run_json(Path(said["config"]))
    assert again["calls"] == {"made": 0, "reused": 0} and again["accounting"] == said["accounting"]


def test_an_override_changes_the_pairs_names_stale_checkpoints_and_is_trained_on(said: dict) -> None:
    run = RunView(said["run"])
    end = next(e for e in run.ended("rl") if e.admission.pair is not None)
    flipped = "b" if end.settled.label == "a" else "a"
    override = Override(
        comparison_id=end.comparison.id, label=flipped, author="ann", reason="clearer", blind=True, time=now()
    )
    ledger.append_now(schema.connect(run.folder / "store.sqlite"), [override])
    pairs = json.loads(runs.cai("pairs", said["run"], "--json").stdout)
    assert [Path(p).name for p in pairs["stale"]] == ["rl"]
    rows = [json.loads(line) for line in (run.folder / "provenance.jsonl").read_text().splitlines()]
    changed = next(r for r in rows if r["pair_id"] == end.comparison.id)
    assert changed["label_source"] == "human" and changed["override_id"] == override.id
    assert changed["chosen_arm"] == flipped
    again = runs.run_json(Path(said["config"]))
    assert [Path(p).name for p in again["stale"]] == ["rl"] and again["accounting"]["overridden"] == 1
    old = json.loads((run.folder / "checkpoints" / "rl" / "checkpoint.json").read_text())
    assert "rl" in runs.cai("train", said["run"]).stdout
    new = json.loads((run.folder / "checkpoints" / "rl" / "checkpoint.json").read_text())
    assert new["rows_id"] != old["rows_id"]
    assert json.loads(runs.cai("pairs", said["run"], "--json").stdout)["stale"] == []


def test_rows_are_shown_as_the_model_reads_them(said: dict) -> None:
    shown = runs.cai("train", said["run"], "--phase", "rl", "--show", "2").stdout
    assert shown.count("assistant") >= 2
