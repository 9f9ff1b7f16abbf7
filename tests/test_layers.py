"""Imports point down only, heavy libraries stay where they belong, and help answers without them."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "cai"

LAYERS: dict[str, int] = {
    # L0 words
    "errors": 0,
    "canon": 0,
    "durable": 0,
    "records": 0,
    # L1 edited text
    "shipped": 1,
    "yamlfile": 1,
    "checks": 1,
    "config": 1,
    "constitution": 1,
    "templates": 1,
    "promptrows": 1,
    "promptset": 1,
    "fewshot": 1,
    "texts": 1,
    # L2 outside
    "engine": 2,
    "store": 2,
    "manifest": 2,
    "model": 2,
    # L3 work
    "stages": 3,
    "train": 3,
    # L4 readers
    "trail": 4,
    "pairs": 4,
    "evaluate": 4,
    "assay": 4,
    "review": 4,
    "audit": 4,
    "report": 4,
    "cards": 4,
    "doctor": 4,
    # L5 conductor
    "executors": 5,
    "pipeline": 5,
    "plan": 5,
    "workshop": 5,
    # L6 doors
    "cli": 6,
    "view": 6,
}
HEAVY = {
    "torch",
    "transformers",
    "trl",
    "vllm",
    "ray",
    "datasets",
    "peft",
    "accelerate",
    "starlette",
    "uvicorn",
    "matplotlib",
    "scipy",
    "sklearn",
    "statsmodels",
    "pandas",
    "numpy",
}
MAY_BE_HEAVY = (
    "train/",
    "engine/local.py",
    "engine/reward.py",
    "engine/tokens.py",
    "engine/forking.py",
    "model/",
    "executors/ray",
    "evaluate/ladder.py",
    "evaluate/lengths.py",
    "view/",
    "assay/curves.py",
    "assay/effects.py",
    "audit/frames.py",
)
UP_FOR_TYPES = {("pipeline/evaluation.py", "cai.pipeline.conduct")}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(module: str) -> str:
    """`cai.engine.client` is in the room `engine`."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path, *, top_only: bool = False) -> list[str]:
    """Every name a file imports, in full; only those at the top of the file if asked."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    found = []
    for node in nodes:
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(name_of(path))
    if here in ("", "__main__"):
        return
    for imported in imports(path):
        if imported.split(".")[0] == "cai" and imported != "cai" and imported != "cai.__version__":
            there = room(imported)
            assert there in LAYERS, f"{path}: '{there}' has no layer yet; give it one in LAYERS"
            assert LAYERS[there] <= LAYERS[here], f"{path}: layer {LAYERS[here]} imports {imported} of {LAYERS[there]}"


def test_every_room_has_a_layer() -> None:
    rooms = {p.stem if p.is_file() else p.name for p in PACKAGE.iterdir() if p.suffix == ".py" or p.is_dir()}
    rooms -= {"__init__", "__main__", "__pycache__", "shipped_files"}
    assert rooms <= set(LAYERS)


def test_there_are_no_circles() -> None:
    known = {name_of(p) for p in modules()}
    graph: dict[str, set[str]] = {}
    for path in modules():
        targets = set()
        for imported in imports(path, top_only=True):
            target = imported if imported in known else imported.rpartition(".")[0]
            # A package's front door may import its own files; the files then do not import the door.
            if target in known and target != name_of(path):
                targets.add(target)
        graph[name_of(path)] = targets
    TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_heavy_libraries_are_imported_only_where_they_belong(path: Path) -> None:
    place = str(path.relative_to(PACKAGE))
    if place.startswith(MAY_BE_HEAVY):
        return
    allowed = {"datasets"} if place == "promptset.py" else set()
    found = {name.split(".")[0] for name in imports(path)} & HEAVY
    assert found <= allowed, f"{place} imports {sorted(found - allowed)}"


def test_help_imports_nothing_heavy() -> None:
    script = "import sys, cai.cli\ntry: cai.cli.main(['--help'])\nexcept SystemExit: pass\nprint(sorted(sys.modules))"
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    loaded = set(ast.literal_eval(said.splitlines()[-1]))
    assert not loaded & (HEAVY | {"pydantic", "aiohttp", "jinja2", "yaml"})
