"""The README's commands, word for word and one after the other. Models and trainings are played, the rest is not."""

from __future__ import annotations

import io
import json
import re
import shlex
import shutil
from pathlib import Path

import pytest

from cai.assay import probes
from tests import runs
from tests.played import play_trainings, write_base

ROOT = Path(__file__).resolve().parent.parent
BESIDE_ZERO = {
    "cai doctor": 1,  # this machine may lack something
    "cai retry": 2,  # nothing has failed
    "cai judge check": 1,  # the stand-in listens to whom it should not
    "cai constitution test": 1,  # and does not know better
}
"""Exit codes that are no failure of the README."""
NEEDS_A_MODEL = "cai constitution test"
"""Without a config it asks the embedded model."""
WAITS_FOR_A_BROWSER = "cai view"
FEWER = ("--estimate 140 --value 60", "--estimate 3 --value 1")
"""The runs here are small."""


def lines() -> list[str]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"^\s*(cai [a-z][^#\n]*)", text, re.MULTILINE) + re.findall(r"`(cai [a-z][^`]*)`", text)
    return [" ".join(line.split()) for line in found]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which the names that the README uses are small: its quickstart asks the stand-in for a model."""
    play_trainings(monkeypatch)
    gold, texts, data_id = probes.load(probes.shipped_folder())
    monkeypatch.setattr(probes, "load", lambda _: (gold[:2], texts, data_id))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart.yaml", "scripted.yaml"):
        runs.write_inputs(tmp_path, n_prompts=6)
        tree = runs.config(tmp_path, run__dir=f"runs/{name[:-5]}", run__reuse=True, prompts__held_out=0.4)
        tree["constitution"] = "constitutions/quickstart.yaml"
        tree["prompts"]["sources"][0]["domain"] = "tempting"
        if name == "quickstart.yaml":
            tree["phases"] = [{"name": "rl", "samples": 2, "pairs": ["samples"], "train": "dpo"}]
            tree["models"]["policy"]["checkpoint"] = str(write_base(tmp_path / "base"))
        (tmp_path / "configs").mkdir(exist_ok=True)
        runs.write_config(tmp_path / "configs", tree, name)
    shutil.copytree(ROOT / "constitutions", tmp_path / "constitutions")
    shutil.copy(tmp_path / "constitutions" / "quickstart.yaml", tmp_path / "old.yaml")
    text = (tmp_path / "old.yaml").read_text(encoding="utf-8")
    (tmp_path / "new.yaml").write_text(text.replace("compare: >-\n", "compare: >-\n      Look closely.\n", 1))
    labelled = {"prompt": "Why?", "response_a": "So.", "response_b": "Since it rains.", "label": "B"}
    (tmp_path / "labelled.jsonl").write_text(json.dumps(labelled) + "\n")
    return tmp_path


def test_the_commands_of_the_readme_work_in_their_order(folder: Path) -> None:
    done = []
    for line in lines():
        if line.startswith(WAITS_FOR_A_BROWSER):
            continue
        words = shlex.split(line.replace(*FEWER))[1:]
        if line.startswith(NEEDS_A_MODEL):
            words += ["--config", "configs/quickstart.yaml"]
        ended = runs.cai(*words, check=None)
        allowed = {0, next((code for start, code in BESIDE_ZERO.items() if line.startswith(start)), 0)}
        assert ended.returncode in allowed, f"{line}: exit {ended.returncode}\n{ended.stdout}\n{ended.stderr}"
        assert ended.returncode == 0 or line.startswith(("cai doctor", "cai retry")) or ended.stdout, line
        done.append(words[0])
    assert {"init", "plan", "run", "status", "pairs", "train", "report", "constitution", "audit", "review"} <= set(done)
    assert (folder / "runs" / "mine" / "report.html").exists() and (folder / "pairs.jsonl").exists()
