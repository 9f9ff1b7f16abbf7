"""The command line: every command explains itself with an example, quickly, and tells mistakes from faults."""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cai.assay import probes
from cai.cli import _parser
from cai.cli.terminal import clean, table
from tests import runs

ROOT = Path(__file__).resolve().parent.parent
COMMANDS = {"init", "plan", "run", "status", "watch", "pairs", "data", "train", "reward", "report", "eval", "card"}
COMMANDS |= {"retry", "recover", "constitution", "model", "serve", "doctor", "judge", "audit", "review", "view"}


def parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                yield from parsers(child)


def test_every_command_is_there_and_has_an_example() -> None:
    names = set()
    for parser in parsers(_parser()):
        words = parser.prog.split()[1:]
        names |= set(words[:1])
        assert not words or f"example:\n  {parser.prog}" in (parser.epilog or ""), parser.prog
    assert names == COMMANDS


def test_examples_parse() -> None:
    whole = _parser()
    for parser in parsers(whole):
        if parser.prog == "cai":
            continue
        example = (parser.epilog or "").splitlines()[1].split(">")[0].split()[1:]
        whole.parse_args(example)


def test_an_unknown_command_is_a_usage_error() -> None:
    assert "invalid choice: 'rnu'" in runs.cai("rnu", check=2).stderr


def test_a_missing_config_says_where_it_was_looked_for() -> None:
    said = runs.cai("run", "nowhere.yaml", check=2).stderr
    assert said.startswith("cai: 'nowhere.yaml': no such file") and "Traceback" not in said


@given(st.text())
def test_cleaned_text_steers_no_terminal(text: str) -> None:
    left = clean(text)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", left)
    left.encode()


@given(st.lists(st.tuples(st.text(max_size=9), st.integers()), min_size=1, max_size=5))
def test_a_table_has_one_line_a_row(rows: list[tuple[str, int]]) -> None:
    assert len(table(rows, head=("a", "b")).split("\n")) == len(rows) + 2


def test_init_makes_a_folder_that_plans(tmp_path: Path) -> None:
    runs.cai("init", tmp_path / "mine")
    said = json.loads(runs.cai("plan", "scripted.yaml", "--json", cwd=tmp_path / "mine").stdout)
    assert said["prompts"]["train"] == 40
    assert "is not empty" in runs.cai("init", tmp_path / "mine", check=2).stderr


def test_the_plan_holds_what_the_run_then_asks(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    least, most = json.loads(runs.cai("plan", path, "--json").stdout)["requests"]
    assert least <= runs.run_json(path)["calls"]["made"] <= most


def test_the_plan_is_exact_where_no_check_decides(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    text = (tmp_path / "constitution.yaml").read_text(encoding="utf-8")
    start, end = text.index("  - id: brief"), text.index("  - id: kind")
    (tmp_path / "constitution.yaml").write_text(text[:start] + text[end:], encoding="utf-8")
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    least, most = json.loads(runs.cai("plan", path, "--json").stdout)["requests"]
    assert least == most == runs.run_json(path)["calls"]["made"]


@pytest.mark.parametrize(
    "judge",
    [
        {"prior": "content_free", "canary": True},
        {"mode": "cot", "prior": "content_free"},
        {"mode": "score"},
        {"check": {"enforce": True}, "prior": "content_free"},
    ],
    ids=["prior and canary", "cot", "score", "check"],
)
def test_the_plan_counts_what_a_judge_is_asked_beside_the_pairs(
    tmp_path: Path, judge: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    gold, *rest = probes.load(probes.shipped_folder())
    monkeypatch.setattr(probes, "load", lambda folder: (gold[:2], *rest))  # fewer say as much here
    runs.write_inputs(tmp_path, n_prompts=2)
    text = (tmp_path / "constitution.yaml").read_text(encoding="utf-8")
    start, end = text.index("  - id: brief"), text.index("  - id: kind")
    (tmp_path / "constitution.yaml").write_text(text[:start] + text[end:], encoding="utf-8")
    path = runs.write_config(tmp_path, runs.config(tmp_path, judge=judge))
    planned = json.loads(runs.cai("plan", path, "--json").stdout)
    least, most = planned["requests"]
    made = runs.run_json(path)["calls"]["made"]
    assert made == most
    assert least == most or "canary" in judge or judge.get("mode") == "cot"  # reasons may not end by themselves
    assert any(phase["prior"][1] for phase in planned["phases"]) == ("prior" in judge)
    assert [phase["name"] for phase in planned["phases"]] == (["judge check"] if "check" in judge else []) + ["walk"]


def test_lint_finds_the_line(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_text("schema: 1\nname: bad\nprinciple: []\n", encoding="utf-8")
    said = runs.cai("constitution", "lint", tmp_path / "bad.yaml", check=2)
    assert "bad.yaml:3:1" in said.stdout and "principles" in said.stdout
    assert json.loads(runs.cai("constitution", "lint", tmp_path / "bad.yaml", "--json", check=2).stdout)


def test_the_schema_is_json_schema() -> None:
    schema = json.loads(runs.cai("constitution", "schema").stdout)
    assert schema["$schema"].startswith("https://json-schema.org/") and "principles" in schema["properties"]


def test_doctor_looks_at_everything() -> None:
    found = {f["what"]: f["state"] for f in json.loads(runs.cai("doctor", "--json", check=None).stdout)}
    assert {"python", "transformers", "engine", "gpu", "free disk here", "cache folder"} <= set(found)


def test_status_of_no_run_is_the_users_mistake(tmp_path: Path) -> None:
    assert "no manifest.json here" in runs.cai("status", tmp_path, check=2).stderr


@pytest.mark.parametrize(
    ("manifest", "expected"),
    [
        ("{", "restore it from a copy"),
        ("[]", "(expected an object); restore it from a copy"),
        (
            '{"schema": 1, "cai_version": "0.0.9"}',
            "found schema 1, expected 2; open it with the version of cai that wrote it (0.0.9)",
        ),
    ],
)
def test_a_manifest_that_cannot_be_used_is_one_message(manifest: str, expected: str, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest, encoding="utf-8")
    for command in (("status",), ("report",), ("audit", "summary")):
        said = runs.cai(*command, tmp_path, check=2).stderr
        assert expected in said and "Traceback" not in said


@pytest.mark.parametrize("config", sorted(ROOT.glob("configs/*.yaml")), ids=lambda p: p.name)
def test_every_shipped_config_plans(config: Path) -> None:
    said = json.loads(runs.cai("plan", config, "--json", cwd=ROOT).stdout)
    assert said["prompts"]["train"] > 0 and said["requests"][1] > 0
    assert len(said["examples"]) == 3


def test_the_scripted_config_finishes_forty_prompts(tmp_path: Path) -> None:
    said = runs.run_json(Path("configs/scripted.yaml"), f"run.dir={tmp_path / 'scripted'}")
    assert {"run", "accounting", "calls"} <= set(said)
    assert said["prompts"]["train"] == 40 and said["calls"]["made"] > 200
    assert (Path(said["run"]) / "report.html").exists()


def test_shell_lines_of_the_readme_are_commands_that_exist() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\s*(?:\$ )?(cai [a-z].*)$", text, re.MULTILINE)
    assert len(lines) >= 5
    whole = _parser()
    for line in lines:
        words = line.split("#")[0].split()
        whole.parse_args(words[1:])


def test_every_command_speaks_json_but_those_that_print_a_file() -> None:
    leaves = [p for p in parsers(_parser()) if not any(isinstance(a, argparse._SubParsersAction) for a in p._actions)]
    without = {p.prog for p in leaves if "--json" not in p._option_string_actions}
    assert without == {"cai constitution schema", "cai constitution export"}


def test_the_plan_ends_with_its_counts_and_begins_with_the_resolved_config(tmp_path: Path) -> None:
    runs.write_inputs(tmp_path)
    path = runs.write_config(tmp_path, runs.config(tmp_path))
    said = runs.cai("plan", path, "run.seed=7").stdout
    order = ["--- resolved config ---", "seed: 7", "--- respond ---", "--- judge ---", "requests in all: ", "disk at"]
    assert [said.index(words) for words in order] == sorted(said.index(words) for words in order)
    short = runs.cai("plan", path, "--short", "run.seed=7").stdout
    assert short and said.endswith(short) and "resolved config" not in short


def test_exit_codes_stand_in_the_help() -> None:
    assert "exit codes: 0 done" in _parser().format_help()
