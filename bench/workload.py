"""What the benchmarks run: a constitution of n principles from the shipped ones, prompts, and a config's tree."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai import constitution, shipped

_CONSTITUTIONS = ("harmless", "helpful-honest")
_PROMPTS = ("everyday", "tempting")
PRINCIPLES = 16


def write(folder: Path, *, n_prompts: int, n_principles: int = PRINCIPLES) -> None:
    """Write `constitution.yaml` and `prompts.jsonl` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    tree = {"schema": 1, "name": "bench", "description": "For benchmarks.", "principles": principles(n_principles)}
    (folder / "constitution.yaml").write_text(json.dumps(tree, indent=1), encoding="utf-8")  # JSON is YAML
    with (folder / "prompts.jsonl").open("w", encoding="utf-8") as file:
        for row in itertools.islice(prompts(), n_prompts):
            file.write(json.dumps(row) + "\n")


def write_templates(folder: Path) -> None:
    """Copy the shipped prompt templates into `folder`, to be edited."""
    shutil.copytree(shipped.find("prompts"), folder, ignore=shutil.ignore_patterns("sets"))


def principles(n: int) -> list[dict[str, Any]]:
    """Return `n` principles of the shipped constitutions that a model judges, for every domain."""
    found = {}
    for name in _CONSTITUTIONS:
        for p in constitution.load(shipped.find(f"constitutions/{name}.yaml")).principles:
            if p.compare and p.id not in found:
                found[p.id] = {key: getattr(p, key) for key in ("id", "title", "critique", "revision", "compare")}
    return list(found.values())[:n]


def prompts() -> Iterator[dict[str, str]]:
    """Yield prompt rows without end: the shipped ones, then the same again, numbered."""
    rows = [
        json.loads(line)
        for name in _PROMPTS
        for line in shipped.find(f"prompts/sets/{name}.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    rows = [row for row in rows if "prompt" in row]  # whole conversations are left out
    for n in itertools.count():
        for row in rows:
            yield row if not n else {"id": f"{row['id']}-{n}", "prompt": f"{row['prompt']} (case {n})"}


def config(folder: Path, name: str, **sections: Any) -> Path:
    """Write the config of a run `name` that samples two answers and judges the pair; return its path.

    The run starts a scripted server of its own. `sections` are merged into the tree, section by section.
    """
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "runs" / name), "reuse": False},
        "constitution": str(folder / "constitution.yaml"),
        "prompts": {"sources": [{"path": str(folder / "prompts.jsonl")}], "held_out": 0.0, "near_duplicate": 1.0},
        "models": {"policy": {"checkpoint": "scripted"}},
        "engine": {"kind": "scripted", "max_model_len": 16384},
        "respond": {"max_tokens": 400},
        "phases": [{"name": "walk", "samples": 2, "pairs": ["samples"]}],
    }
    for section, values in sections.items():
        tree[section] = tree.get(section, {}) | values if isinstance(values, dict) else values
    path = folder / f"{name}.yaml"
    path.write_text(json.dumps(tree, indent=1), encoding="utf-8")
    return path
