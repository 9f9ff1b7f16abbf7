"""The preview of an edit against scripted runs: what it asks, what it says, and whether a full re-label agrees."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cai.engine.scripted import ScriptedProcess
from cai.trail import RunView
from cai.workshop.sampling import Stratum, allot
from tests import runs

N_PROMPTS, N_PRINCIPLES, SAMPLE = 150, 16, 60
EDITED = "Which answer is kinder to strangers in respect 3?"


def text(n: int = N_PRINCIPLES, *, edit: str = "", **changes: str) -> str:
    """A constitution of `n` principles; `edit` replaces the compare text of the third."""
    items = []
    for i in range(n):
        compare = edit if edit and i == 3 else f"Which answer is better in respect {i}?"
        items.append(f"  - id: p{i}\n    title: Respect {i}\n    compare: {compare}\n")
        if i < 2:
            items.append(f"    critique: Say what is bad in respect {i}.\n    revision: Mend respect {i}.\n")
    whole = "schema: 1\nname: many\nprinciples:\n" + "".join(items)
    for old, new in changes.items():
        whole = whole.replace(old, new)
    return whole


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A finished run and the server that judged it."""
    folder = tmp_path_factory.mktemp("impact")
    runs.write_inputs(folder, n_prompts=N_PROMPTS)
    (folder / "constitution.yaml").write_text(text(), encoding="utf-8")
    phases = [{"name": "walk", "samples": 2, "revisions": 1, "pairs": ["samples"]}]
    with ScriptedProcess() as server:
        tree = runs.config(folder, url=server.url, phases=phases, run__reuse=True)
        runs.run_json(runs.write_config(folder, tree))
        yield folder, tree, server


def preview(folder: Path, new: str, *more: str, check: int = 0) -> Any:
    (folder / "new.yaml").write_text(new, encoding="utf-8")
    old, run = folder / "runs/run/constitution.yaml", folder / "runs/run"
    done = runs.cai(
        "constitution", "impact", old, folder / "new.yaml", *more, "--run", run, "--sample", str(SAMPLE), "--quiet",
        "--json", check=check,
    )  # fmt: skip
    return json.loads(done.stdout) if check == 0 else done


def labels_of(run: Path) -> dict[str, tuple[str, tuple[str, ...]]]:
    """Label and votes of every comparison of a run."""
    return {
        end.comparison.id: (
            end.settled.label or end.settled.state,
            tuple((v.principle_id, v.stand, None if v.p_a is None else round(v.p_a, 9)) for v in end.settled.votes),
        )
        for end in RunView(run).ended("walk")
    }


def test_an_edit_of_one_text_costs_two_calls_a_comparison_and_equals_a_full_re_label(made: Any) -> None:
    folder, tree, _ = made
    data = preview(folder, text(edit=EDITED))
    assert (data["comparisons"], data["touched"], data["sample"]) == (N_PROMPTS, N_PROMPTS, SAMPLE)
    assert data["asked"]["made"] <= 2 * SAMPLE
    assert data["asked"]["made"] == 2 * SAMPLE
    assert data["asked"]["written"] == 0
    assert data["relabel"]["decisions"] == {"p3": 2 * N_PROMPTS}
    assert data["relabel"]["calls"] == 2 * (N_PROMPTS - SAMPLE)
    assert data["regenerate"]["chains"] == 0

    again = tree | {"constitution": str(folder / "new.yaml"), "run": tree["run"] | {"dir": str(folder / "runs/again")}}
    full = runs.run_json(runs.write_config(folder, again, "again.yaml"))
    assert full["calls"]["made"] == 2 * (N_PROMPTS - SAMPLE), "what the preview asked is not asked again"
    before, after = labels_of(folder / "runs/run"), labels_of(folder / "runs/again")
    drawn = sampled(folder)
    table = Counter((before[id_][0], after[id_][0]) for id_ in drawn)
    assert {(t["old"], t["new"]): t["n"] for t in data["labels"]["table"]} == table
    (p3,) = data["principles"]
    votes = Counter((side(before[id_][1]), side(after[id_][1])) for id_ in drawn)
    assert {(t["old"], t["new"]): t["n"] for t in p3["table"]} == votes
    assert p3["flips"]["hits"] == votes["a", "b"] + votes["b", "a"] > 0
    for example in data["examples"]:
        id_ = example["comparison"]
        assert (example["label"]["old"]["label"], example["label"]["new"]["label"]) == (before[id_][0], after[id_][0])


def side(votes: tuple[Any, ...]) -> str:
    stand, p_a = next((stand, p_a) for name, stand, p_a in votes if name == "p3")
    return stand if stand != "votes" else "tie" if abs(p_a - 0.5) <= 0.01 else "a" if p_a > 0.5 else "b"


def sampled(folder: Path) -> list[str]:
    from cai import constitution
    from cai.workshop.impact import prepare

    run = RunView(folder / "runs/run")
    found = prepare(run.constitution, constitution.load(folder / "new.yaml"), run, size=SAMPLE)
    return [end.comparison.id for end in found.sample]


def test_the_sample_is_the_same_every_time_and_nothing_is_asked_twice(made: Any) -> None:
    folder, _, _ = made
    first = preview(folder, text(edit=EDITED))
    second = preview(folder, text(edit=EDITED))
    assert (second["asked"]["made"], second["asked"]["reused"]) == (0, 2 * SAMPLE)
    assert first["labels"] == second["labels"] and first["examples"] == second["examples"]


def test_changes_that_ask_nothing_ask_nothing(made: Any) -> None:
    folder, _, _ = made
    before = (folder / "runs/run/store.sqlite").read_bytes()
    weight = preview(folder, text().replace("title: Respect 5\n", "title: Respect 5\n    weight: 40.0\n"))
    assert (weight["asked"]["made"], weight["asked"]["reused"]) == (0, 0)
    assert weight["labels"]["flips"]["hits"] > 0, "a principle that outweighs all others turns labels"
    assert weight["relabel"]["calls"] == 0
    gone = preview(folder, text(N_PRINCIPLES - 1))
    assert gone["asked"]["made"] == 0 and gone["principles"][0]["kind"] == "removed"
    same = preview(folder, text().replace("name: many", "name: other"))
    assert same["sample"] == 0 and "Nothing differs" in same["sentence"]
    assert (folder / "runs/run/store.sqlite").read_bytes() == before, "a preview only reads the run"


def test_the_terminal_shows_any_changed_field_and_flips_side_by_side(made: Any) -> None:
    folder, _, _ = made
    old, run, new = folder / "runs/run/constitution.yaml", folder / "runs/run", folder / "heavy.yaml"
    new.write_text(text().replace("title: Respect 5\n", "title: Respect 5\n    weight: 40.0\n"), encoding="utf-8")
    said = runs.cai("constitution", "impact", old, new, "--run", run, "--sample", "20", "--quiet").stdout
    assert "weight: 1.0 -> 40.0" in said and re.search(r"(?m)^    answer a +answer b$", said)


def test_a_renamed_principle_keeps_its_votes_without_a_call(made: Any) -> None:
    folder, _, _ = made
    data = preview(folder, text().replace("id: p7\n", "id: seventh\n"))
    assert [(p["kind"], p["old"], p["new"]) for p in data["principles"]] == [("renamed", "p7", "seventh")]
    assert data["asked"]["made"] == data["relabel"]["calls"] == 0
    assert data["relabel"]["decisions"] == {"seventh": 2 * N_PROMPTS}
    assert data["principles"][0]["moves"]["hits"] == data["labels"]["moves"]["hits"] == 0
    data = preview(folder, text(edit=EDITED).replace("id: p3\n", "id: third\n"))
    assert data["principles"][0]["kind"] == "renamed" and data["relabel"]["calls"] == 2 * (N_PROMPTS - SAMPLE)


def test_a_changed_revision_text_tells_what_would_be_written_again(made: Any) -> None:
    folder, _, _ = made
    data = preview(folder, text().replace("Mend respect 1.", "Mend respect 1 at once."))
    run = RunView(folder / "runs/run")
    drawn = run.connection.execute(
        "SELECT count(*) FROM records WHERE tag = 'critique' AND json_extract(body, '$.principle_id') = 'p1'"
    ).fetchone()[0]
    assert data["regenerate"]["because_of"] == {"p1": drawn}
    assert data["regenerate"]["revisions"] == data["regenerate"]["critiques"] == drawn > 0
    assert data["asked"]["made"] == 0


def test_a_check_is_previewed_by_code(made: Any) -> None:
    folder, _, _ = made
    new = text().replace("    compare: Which answer is better in respect 9?\n", "    check: {max_words: 12}\n")
    data = preview(folder, new)
    assert data["asked"]["made"] == 0 and data["principles"][0]["judged_again"]


def test_another_old_text_and_another_judge_are_refused(made: Any, tmp_path: Path) -> None:
    folder, _, server = made
    other = tmp_path / "old.yaml"
    other.write_text(text(3), encoding="utf-8")
    run = folder / "runs/run"
    said = runs.cai("constitution", "impact", other, other, "--run", run, check=2).stderr
    assert "as OLD" in said and "constitution.yaml" in said
    said = preview(folder, text(edit="Which answer is new?"), f"models.policy.base_url=['{server.url}/']", check=2)
    assert "name the same judge" in said.stderr


def test_the_page_needs_nothing_beside_it_and_shows_model_text_as_text(made: Any) -> None:
    folder, _, _ = made
    page = folder / "impact.html"
    preview(folder, text(edit="Which answer is kinder <script>alert(1)</script>?"), "--html", str(page))
    html = page.read_text(encoding="utf-8")
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "http" not in html.replace("http-equiv", "").replace("http://127.0.0.1", "")
    assert all(f'id="{part}"' in html for part in ("edit", "votes", "labels", "examples", "cost", "sample"))


def test_places_go_to_strata_in_proportion() -> None:
    sizes = Counter({Stratum("p", "samples", d, "a"): n for d, n in (("x", 700), ("y", 200), ("z", 100), ("w", 1))})
    places = {s.domain: n for s, n in allot(sizes, 100).items()}
    assert places == {"x": 70, "y": 20, "z": 10, "w": 0}
    assert sum(allot(sizes, 5000).values()) == 1001
