"""Without a home, a terminal, a language or a place to write, a run works or says why not."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests import runs

BARE = {"PATH": os.environ["PATH"], "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
"""Neither HOME nor a language nor a terminal."""
SURROUNDINGS = {
    "a home that nobody can write": {"HOME": "/proc/none"},
    "no home, ascii": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"},
}


@pytest.mark.parametrize("name", SURROUNDINGS)
def test_a_run_works_wherever_it_is_started(tmp_path: Path, name: str) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    with open(tmp_path / "prompts.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "\u00fc", "prompt": "Erz\u00e4hl mir von \u732b, bitte \u2764"}) + "\n")
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    done = subprocess.run(
        runs.command("run", path), capture_output=True, env=BARE | SURROUNDINGS[name], stdin=subprocess.DEVNULL, cwd="/"
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"\x1b" not in done.stdout + done.stderr and b"Traceback" not in done.stderr
    # It shows what was written in other scripts.
    plan = subprocess.run(runs.command("plan", path), capture_output=True, env=BARE | SURROUNDINGS[name])
    assert plan.returncode == 0, plan.stderr.decode(errors="replace")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    path = runs.write_config(tmp_path, runs.config(tmp_path, run__dir="/proc/none/run"))
    said = runs.cai("run", path, "--quiet", check=None)
    assert said.returncode == 1 and "/proc/none" in said.stderr and "Traceback" not in said.stderr
