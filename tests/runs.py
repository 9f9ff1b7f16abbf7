"""Small runs against scripted servers, for the tests of the whole road."""

from __future__ import annotations

import io
import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from cai.cli import main

_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY")

CONSTITUTION = """\
schema: 1
name: small
description: For tests.
principles:
  - id: brief
    title: Is brief
    weight: 2.0
    revision: Write the answer again in at most thirty words.
    check: {max_words: 30}
  - id: kind
    title: Is kind
    critique: Say where the answer is unkind.
    revision: Write the answer again, kindly.
    compare: Which answer is kinder?
  - id: clear
    title: Is clear
    critique: Say where the answer is unclear.
    revision: Write the answer again, clearly.
    compare: Which answer is clearer?
"""


def write_inputs(folder: Path, *, n_prompts: int = 20) -> None:
    """Write a constitution and prompts into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "constitution.yaml").write_text(CONSTITUTION, encoding="utf-8")
    rows = [{"id": f"p{i}", "prompt": f"Tell me about thing number {i}, please."} for i in range(n_prompts)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")


def config(folder: Path, *, url: str | None = None, name: str = "run", **changes: Any) -> dict[str, Any]:
    """Return a config's tree: against the server at `url`, or against one the run starts itself."""
    tree: dict[str, Any] = {
        "run": {"dir": str(folder / "runs" / name), "reuse": False},
        "constitution": str(folder / "constitution.yaml"),
        "prompts": {
            "sources": [{"path": str(folder / "prompts.jsonl")}],
            "held_out": 0.0,
            "near_duplicate": 1.0,
        },
        "models": {"policy": {"base_url": [url]} if url else {"checkpoint": "scripted"}},
        "engine": {"kind": "scripted", "retries": 8, "max_model_len": 16384},
        "respond": {"max_tokens": 600},
        "phases": [{"name": "walk", "samples": 2, "revisions": 1, "pairs": ["revision", "samples"]}],
    }
    for path, value in changes.items():
        place = tree
        *parents, last = path.split("__")
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = value
    return tree


def write_config(folder: Path, tree: dict[str, Any], name: str = "run.yaml") -> Path:
    """Write a config file and return its path. JSON is YAML."""
    path = folder / name
    path.write_text(json.dumps(tree), encoding="utf-8")
    return path


def command(*arguments: str | Path) -> list[str]:
    """Return the command line of `cai`."""
    return [sys.executable, "-m", "cai", *map(str, arguments)]


def cai(
    *arguments: str | Path, check: int | None = 0, cwd: Path | None = None, apart: bool = False
) -> subprocess.CompletedProcess[str]:
    """Run `cai` to its end. An exit code other than `check` fails the test with what was said.

    With `cwd` or `apart` it runs in a process of its own, otherwise in this one, which saves its imports.
    """
    if cwd is None and not apart:
        done = _here(*map(str, arguments))
    else:
        environment = {k: v for k, v in os.environ.items() if k not in _PROXIES}
        done = subprocess.run(command(*arguments), capture_output=True, text=True, env=environment, cwd=cwd)
    assert check is None or done.returncode == check, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def _here(*arguments: str) -> subprocess.CompletedProcess[str]:
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        for name in _PROXIES:
            patch.delenv(name, raising=False)
        try:
            code = main(arguments)
        except SystemExit as ended:  # argparse
            code = ended.code
    return subprocess.CompletedProcess(["cai", *arguments], code, out.getvalue(), err.getvalue())


@contextmanager
def every_store_closed() -> Iterator[None]:
    """Fail where a database that was opened inside has not been closed at the end, as a count of connections tells."""
    opened: list[sqlite3.Connection] = []
    closed: set[int] = set()
    connect = sqlite3.connect

    class Counted(sqlite3.Connection):
        def close(self) -> None:
            closed.add(id(self))
            super().close()

    def counting(*arguments: Any, **settings: Any) -> sqlite3.Connection:
        opened.append(connect(*arguments, factory=Counted, **settings))  # held, so that no id comes twice
        return opened[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", counting)
        yield
    left = [c for c in opened if id(c) not in closed]
    assert opened and not left, f"{len(left)} of {len(opened)} connections were left open"


def run_json(path: Path, *overrides: str, check: int | None = 0) -> dict[str, Any]:
    """Run a config and return what `--json` ends with."""
    return json.loads(cai("run", path, *overrides, "--json", "--quiet", check=check).stdout)


def exports(run: str | Path) -> tuple[bytes, bytes]:
    """Return a run's pairs and provenance, byte for byte."""
    folder = Path(run)
    return (folder / "pairs.jsonl").read_bytes(), (folder / "provenance.jsonl").read_bytes()
