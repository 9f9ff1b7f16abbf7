"""Trainings that are played: a checkpoint appears at once, another one for every set of rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cai import canon
from cai.pipeline import training


def play_trainings(patch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Play every training from now on; return the list in which they write what was asked of them."""
    asked: list[dict[str, Any]] = []

    async def train(
        config: Any, folder: Path, phase: str, method: str, rows: Path, base: str, meter: Any, n_rows: int, further: Any
    ) -> dict[str, Any]:
        rows_id = canon.id_of_bytes(rows.read_bytes())
        model = training.checkpoint_dir(folder, phase) / "model"
        write_base(model, rows_id)
        done = {"rows_id": rows_id, "method": method, "base": base, "n_rows": n_rows}
        (model.parent / "checkpoint.json").write_text(json.dumps(done))
        asked.append({"phase": phase, "method": method, "base": base, "n_rows": n_rows})
        return done

    patch.setattr(training, "train", train)
    return asked


def write_base(folder: Path, name: str = "base") -> Path:
    """Write what passes for a model where none is loaded, and return its folder."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"name": name}))
    return folder
