"""Training anew what decisions made since have changed."""

from __future__ import annotations

import shutil
from itertools import islice
from pathlib import Path

from cai.config import SAMPLING
from cai.errors import UserError
from cai.manifest import Manifest
from cai.pairs import phase_rows, stale_checkpoints
from cai.pipeline.conduct import Conductor
from cai.pipeline.meter import Meter
from cai.trail import RunView


def retrain(folder: str, phase: str | None, meter: Meter) -> tuple[Conductor, list[str]]:
    """Set aside the stale checkpoints (or the one of `phase`); return what goes on with the run, and their phases.

    A checkpoint set aside is kept beside the new one, named by the rows it was trained on.
    """
    with RunView(folder) as run:
        chosen = [phase] if phase else [Path(path).name for path in stale_checkpoints(run)]
        for name in chosen:
            _set_aside(run, name)
        return Conductor(run.config_here, near=run.folder, meter=meter, from_folder=True), chosen


def _set_aside(run: RunView, phase: str) -> None:
    entry = run.manifest["phases"].get(phase)
    if entry is None or "train" not in entry:
        raise UserError(f"{run.folder}: phase '{phase}' has no checkpoint; this run has {run.phases}")
    checkpoint = run.folder / "checkpoints" / phase
    kept = checkpoint.with_name(f"{phase}.{entry['train']['rows_id'][3:15]}")
    if kept.exists():
        shutil.rmtree(kept)
    Manifest(run.folder).save(done=None)
    checkpoint.rename(kept)


def show(folder: str, phase: str | None, n: int) -> list[str]:
    """Return `n` rows of a phase as the model reads them, the trained tokens between marks."""
    from cai.train.data import show_row

    with RunView(folder) as run:
        trained = [p for p, entry in run.manifest["phases"].items() if "train" in entry]
        name = phase or (trained[-1] if trained else "")
        if name not in trained:
            raise UserError(f"{folder}: phase '{phase}' trains nothing; phases with a checkpoint: {trained}")
        entry = run.manifest["phases"][name]["train"]
        if entry["method"] in SAMPLING:
            raise UserError(f"{folder}: phase '{name}' trains {entry['method']} on prompts alone; no rows to show")
        rows = islice(phase_rows(run, name, entry["method"]), n)
        trusted = run.config.models.policy.trust_remote_code
        return [show_row(row, entry["method"], entry["base"], trust_remote_code=trusted) for row in rows]
