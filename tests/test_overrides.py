"""`a.b=c` may stand anywhere among a command's words, and what is not one is still refused."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from cai.cli import _parsed
from tests import runs

COMMANDS = {
    "run": ([["config.yaml"]], [["--quiet"], ["--json"]]),
    "retry": ([["runs/mine"]], [["--failed"], ["--quiet"]]),
    "plan": ([["config.yaml"]], [["--json"]]),
    "train": ([["dpo.yaml"]], [["--phase", "dpo"]]),
    "serve": ([["config.yaml"]], []),
    "constitution impact": ([["old.yaml", "new.yaml"]], [["--run", "runs/mine"], ["--sample", "5"]]),
    "constitution test": ([["c.yaml"]], [["--config", "config.yaml"]]),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_overrides_may_stand_before_and_behind_options(command: str) -> None:
    fixed, options = COMMANDS[command]
    expected = None
    for order in itertools.permutations([*options, ["engine.retries=2"], ["run.seed=3"]]):
        if order.index(["engine.retries=2"]) > order.index(["run.seed=3"]):
            continue
        words = [word for part in (*fixed, *order) for word in part]
        found = vars(_parsed([*command.split(), *words]))
        assert found["overrides"] == ["engine.retries=2", "run.seed=3"], words
        assert expected in (None, found)
        expected = found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "c.yaml", "--quiet", "a.b=c", "--qiet"], "unrecognized arguments: --qiet"),
        (["run", "c.yaml", "--quiet", "stray"], "unrecognized arguments: stray"),
        (["status", "runs/mine", "a.b=c"], "unrecognized arguments: a.b=c"),
    ],
)
def test_what_is_no_override_is_refused(words: list[str], said: str) -> None:
    assert said in runs.cai(*words, check=2).stderr


def test_an_override_behind_an_option_holds(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    assert "no_such" in runs.cai("plan", path, "--json", "run.no_such=1", check=2).stderr
    plain = json.loads(runs.cai("plan", path, "--json").stdout)
    assert json.loads(runs.cai("plan", path, "--json", "respond.max_tokens=50").stdout) != plain


def test_a_contest_takes_overrides_behind_its_options() -> None:
    found = _parsed(["eval", "--policy", "m", "limit=6", "--suite", "everyday", "engine.retries=2"])
    assert found.words == ["limit=6", "engine.retries=2"]
