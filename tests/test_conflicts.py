"""Planted conflicts, repetitions and dead principles: all found, none invented."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from cai.engine.scripted import ScriptedProcess
from cai.report import collect, write_report
from cai.templates import FENCE_KEY
from tests import runs

PLANTED = {
    "twin-one": "coherent:twins",
    "twin-two": "coherent:twins",
    "foe-one": "coherent:foes",
    "foe-two": "opposite:foes",
    "dead-tie": "tie",
    "dead-letter": "always-a",
    "dead-invalid": "invalid",
}
FREE = [f"free-{name}" for name in "abcdefgh"]


def text(*, heavy: str = "") -> str:
    items = [
        f"  - id: {id_}\n    title: Asks {id_}\n    weight: {60 if id_ == heavy else 1}\n"
        f"    compare: Is A or B {id_}?\n"
        for id_ in (*PLANTED, *FREE)
    ]
    return "schema: 1\nname: planted\nprinciples:\n" + "".join(items)


def conflicts(folder: Path, constitution: str, n_prompts: int) -> tuple[dict[str, Any], Path]:
    runs.write_inputs(folder, n_prompts=n_prompts)
    (folder / "constitution.yaml").write_text(constitution, encoding="utf-8")
    rules = ",".join(f"is a or b {id_}={rule}" for id_, rule in PLANTED.items())
    with ScriptedProcess(judge=f"by-principle:{rules}") as server:
        tree = runs.config(folder, url=server.url, phases=[{"name": "walk", "samples": 2, "pairs": ["samples"]}])
        runs.run_json(runs.write_config(folder, tree))
    run = Path(tree["run"]["dir"])
    return json.loads(runs.cai("constitution", "conflicts", run, "--json").stdout), run


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    return conflicts(tmp_path_factory.mktemp("planted"), text(), 220)


def test_what_was_planted_is_found_and_nothing_else(planted: tuple[dict[str, Any], Path]) -> None:
    found, _ = planted
    assert [pair["principles"] for pair in found["redundant"]] == [["twin-one", "twin-two"]]
    assert [pair["principles"] for pair in found["opposed"]] == [["foe-one", "foe-two"]]
    assert found["silent"] == ["dead-tie", "dead-letter", "dead-invalid"]
    assert found["overruled"] == []


def test_the_matrix_is_even_and_counts_common_votes(planted: tuple[dict[str, Any], Path]) -> None:
    found, _ = planted
    matrix = found["matrix"]
    assert all(matrix[i][i] is None for i in range(len(matrix)))
    assert all(matrix[i][j] == matrix[j][i] for i in range(len(matrix)) for j in range(len(matrix)))
    ids = [p["principle"] for p in found["principles"]]
    twins = matrix[ids.index("twin-one")][ids.index("twin-two")]
    assert twins["both"] > 200 and twins["share"] == 0
    dead = matrix[ids.index("dead-tie")][ids.index("free-a")]
    assert dead == {"both": 0, "against": 0, "share": None}


def test_a_principle_that_outweighs_all_others_is_told_to_overrule_each(tmp_path: Path, planted: Any) -> None:
    # A weight is no part of any question: the decisions are those of the planted run.
    run = shutil.copytree(planted[1], tmp_path / "run")
    (run / "constitution.yaml").write_text(text(heavy="free-a"), encoding="utf-8")
    found = json.loads(runs.cai("constitution", "conflicts", run, "--json").stdout)
    assert {rule["by"] for rule in found["overruled"]} == {"free-a"}
    others = {"twin-one", "twin-two", "foe-one", "foe-two", *FREE} - {"free-a"}
    assert {rule["principle"] for rule in found["overruled"]} == others
    tips = {p["principle"]: p["tips"]["value"] for p in found["principles"] if p["tips"]}
    assert tips["free-a"] > max(value for name, value in tips.items() if name != "free-a")


def test_few_comparisons_invent_nothing(tmp_path: Path) -> None:
    found, _ = conflicts(tmp_path, text(), 12)
    assert found["redundant"] == found["opposed"] == found["silent"] == found["overruled"] == []


def test_the_report_draws_the_matrix_and_tells_the_findings(planted: tuple[dict[str, Any], Path]) -> None:
    found, run = planted
    page = write_report(run).read_text(encoding="utf-8")
    (phase,) = collect(run)["phases"]
    assert phase["conflicts"]["redundant"] == found["redundant"]
    assert page.count('<rect class="agree ') + page.count('<rect class="differ ') > 60
    assert "<b>Vote nearly alike:</b> Asks twin-one and Asks twin-two" in page
    assert "<b>Never decides:</b> Asks dead-letter" in page


def test_the_command_tells_findings_in_words_and_refuses_an_unknown_phase(planted: Any) -> None:
    _, run = planted
    said = runs.cai("constitution", "conflicts", run).stdout
    assert "vote nearly alike: twin-one and twin-two, 0% against each other" in said
    assert "never decides: dead-tie" in said
    assert "expected one of walk" in runs.cai("constitution", "conflicts", run, "--phase", "x", check=2).stderr


def test_the_key_of_the_fences_lies_beside_the_run_and_in_no_file_of_it(planted: tuple[Any, Path]) -> None:
    _, run = planted
    path = run.parent / FENCE_KEY
    key = path.read_bytes()
    assert len(key) == 32 and path.stat().st_mode & 0o077 == 0
    files = [file for file in run.rglob("*") if file.is_file()]
    assert {"store.sqlite", "pairs.jsonl", "manifest.json"} <= {file.name for file in files}
    for file in files:
        data = file.read_bytes()
        assert key not in data and key.hex().encode() not in data, file
