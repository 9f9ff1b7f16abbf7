"""The editor's commands as they are typed: mistakes, pages, help."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cai import cli, shipped
from tests.runs import cai, config, run_json, write_config, write_inputs
from tests.test_constitution import GOOD, MISTAKES, broken

ACTIONS = ("lint", "test", "show", "fmt", "diff", "impact", "conflicts", "suggest", "import", "export", "schema")


def test_there_are_forty_mistakes_at_least() -> None:
    assert len(MISTAKES) >= 40


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("action", ["lint", "test", "show", "fmt"])
def test_every_command_tells_a_mistake_by_place_with_a_suggestion(
    action: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, (line, col) = broken(name)
    file = tmp_path / "c.yaml"
    file.write_text(text, encoding="utf-8")
    assert cli.main(["constitution", action, str(file)]) == 2
    captured = capsys.readouterr()
    said = captured.out + captured.err
    (message,) = [each for each in said.splitlines() if str(file) in each]
    assert f"{file}:{line}:{col}: found " in message
    assert re.search(r"; \S+", message), f"no suggestion: {message}"
    assert "Traceback" not in said
    assert file.read_text(encoding="utf-8") == text


def test_a_missing_file_is_told_with_the_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "harmless.yaml").write_text(GOOD, encoding="utf-8")
    assert cli.main(["constitution", "show", str(tmp_path / "harmles.yaml")]) == 2
    assert "did you mean" in capsys.readouterr().err


def test_show_tells_texts_weights_and_hashes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(GOOD.replace("title: Brief", "title: Brief <b>bold</b>"), encoding="utf-8")
    cli.main(["constitution", "show", str(file), "--json"])
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    brief, short = data["principles"]
    assert [part["part"] for part in brief["parts"]] == ["critique", "revision", "compare"]
    assert all(part["id"].startswith("b2:") for part in brief["parts"])
    assert (brief["share"], short["parts"][0]["rules"]["max_words"]) == (0.5, "50")
    cli.main(["constitution", "show", str(file)])
    assert "compare: Which answer, A or B, is shorter?" in capsys.readouterr().out
    page = tmp_path / "c.html"
    cli.main(["constitution", "show", str(file), "--html", str(page)])
    html = page.read_text(encoding="utf-8")
    assert "<b>bold</b>" not in html and "Brief &lt;b&gt;bold" in html
    assert data["id"] in html and "http" not in html.replace("http-equiv", "")


@pytest.mark.parametrize("action", ACTIONS)
def test_every_action_has_help_with_an_example(action: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["constitution", action, "--help"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    assert f"example:\n  cai constitution {action}" in said
    assert action in ("schema", "export") or "--json" in said


def test_a_project_from_init_has_the_schema_its_constitution_names(tmp_path: Path) -> None:
    cai("init", tmp_path / "p")
    folder = tmp_path / "p/constitutions"
    first = (folder / "quickstart.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert (folder / first.rpartition("=")[2]).exists()
    assert (shipped.root() / "constitutions" / first.rpartition("=")[2]).exists()


@pytest.fixture()
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with everything that is no constitution, no run and no data, beside one good constitution."""
    for folder in ("folder", "torn", "bare"):
        (tmp_path / folder).mkdir()
    for name, data in {
        "good.yaml": GOOD.encode(), "empty": b"", "utf16": b"\xff\xfe\x00x", "half.json": b"[1, 2", "words": b"{a",
        "torn/manifest.json": b"{", "bare/manifest.json": b"{}",
    }.items():  # fmt: skip
        (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    return tmp_path


FILES = ("nowhere", "empty", "folder", "utf16", "half.json")
RUNS = ("nowhere", "empty", "folder", "torn", "bare", "good.yaml")
BAD = [
    *([action, file] for action in ("lint", "test", "show", "fmt", "export", "import") for file in FILES),
    *(["diff", *sides] for file in FILES for sides in ((file, "good.yaml"), ("good.yaml", file))),
    *(["test", "good.yaml", "--config", file] for file in FILES),
    *(["suggest", "--pairs", file] for file in (*FILES, "words")),
    *(["conflicts", run] for run in RUNS),
    *(["suggest", run] for run in RUNS),
    *(["impact", "good.yaml", "good.yaml", "--run", run] for run in RUNS),
    ["show", "good.yaml", "--html", "folder"],
    ["show", "good.yaml", "--html", "empty/page.html"],
    ["test", "good.yaml", "--junit", "folder"],
    ["impact", "good.yaml", "good.yaml", "--run", "bare", "--html", "folder"],
    ["suggest", "--pairs", "empty", "--out", "good.yaml"],
    ["export", "good.yaml", "--format", "list", "--out", "folder"],
    ["import", "good.yaml", "--out", "good.yaml"],
    ["suggest"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_input_is_one_message(arguments: list[str], places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["constitution", *arguments]) == 2
    captured = capsys.readouterr()
    (message,) = (captured.out + captured.err).splitlines()
    assert "Traceback" not in message and (": " in message or "; " in message)
    assert (places / "good.yaml").read_text(encoding="utf-8") == GOOD


@pytest.mark.parametrize("few_shot", ["nowhere", "empty", "folder", "utf16", "half.json"])
def test_a_bad_few_shot_file_is_one_message(few_shot: str, places: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(places, n_prompts=2)
    path = write_config(places, config(places, judge__few_shot=few_shot))
    assert cli.main(["judge", "check", str(path), "--quiet"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_that_compares_nothing_has_no_conflicts_to_show(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_inputs(tmp_path, n_prompts=2)
    tree = config(tmp_path, phases=[{"name": "walk", "samples": 1}])
    run_json(write_config(tmp_path, tree))
    run = tree["run"]["dir"]
    assert cli.main(["constitution", "conflicts", run]) == 2
    assert "found no comparison" in capsys.readouterr().err
    assert cli.main(["constitution", "suggest", run]) == 2
    assert "found no pair on which" in capsys.readouterr().err
    text = f"{run}/constitution.yaml"
    assert cli.main(["constitution", "impact", text, text, "--run", run]) == 2
    assert "no comparison and no revision" in capsys.readouterr().err
