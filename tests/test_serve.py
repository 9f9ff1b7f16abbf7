"""`cai serve`: the servers of a config by hand, gone with the command."""

from __future__ import annotations

import json
import signal
import subprocess
import urllib.request
from pathlib import Path

import pytest

from tests import runs


def test_policy_and_judge_are_served_until_interrupted(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    tree = runs.config(tmp_path)
    tree["models"]["judge"] = {"checkpoint": "another"}
    path = runs.write_config(tmp_path, tree)
    process = subprocess.Popen(runs.command("serve", path, "--json"), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = ""
    while not said.rstrip().endswith("\n]"):
        line = process.stdout.readline()
        assert line, f"ended early: {said}"
        said += line
    told = json.loads(said)
    assert [(t["role"], t["checkpoint"]) for t in told] == [("policy", "scripted"), ("judge", "another")]
    for each in told:
        with urllib.request.urlopen(f"{each['url']}/v1/models") as answer:
            assert [model["id"] for model in json.load(answer)["data"]] == [each["model"]]
    process.send_signal(signal.SIGINT)
    assert process.wait() == 130
    process.stdout.close()
    for each in told:
        with pytest.raises(OSError):
            urllib.request.urlopen(f"{each['url']}/v1/models")
    assert json.loads((tmp_path / "runs" / "run" / "servers.json").read_text()) == {}


def test_what_has_no_server_to_start_is_told(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    path = runs.write_config(tmp_path, runs.config(tmp_path, engine__kind="transformers"))
    assert "engine.kind 'transformers' has no server" in runs.cai("serve", path, check=2).stderr
    path = runs.write_config(tmp_path, runs.config(tmp_path, url="http://127.0.0.1:9"))
    assert "served already at http://127.0.0.1:9" in runs.cai("serve", path, check=2).stderr
