"""What a training leaves beside its weights: `checkpoint.json`, written last, and what must hold of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cai.errors import TrainError, UserError
from cai.manifest import LOCKS, is_locked
from cai.model.folder import content_of

LOCK = ".lock"
"""Held by the process that trains into the folder."""


def is_at_work(out: Path) -> bool:
    """Return whether a process trains into this folder now; True also where the system does not tell."""
    return is_locked(out / LOCK) or not LOCKS.exists()


def is_finished(out: Path) -> bool:
    """Return whether a training has left its checkpoint in this folder."""
    return (out / "checkpoint.json").exists()


def manifest_of(out: Path) -> dict[str, Any]:
    """Return what `checkpoint.json` says of a finished checkpoint. Raises TrainError where it was cut short."""
    path = out / "checkpoint.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise TrainError(
            f"{path}: not whole ({error}); the checkpoint is damaged, remove {out} and train again"
        ) from error
    return manifest


def check_whole(out: Path, manifest: dict[str, Any]) -> None:
    """Raise TrainError where a finished checkpoint misses a file or one was cut short."""
    for name, size in manifest["files"].items():
        path = out / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            raise TrainError(
                f"{path}: {'missing' if found is None else f'{found} bytes'}, {size} bytes expected; the "
                f"checkpoint is damaged, remove {out} and train again"
            )


def check_fits(out: Path, manifest: dict[str, Any], base: str) -> None:
    """Raise UserError where `base` is not what the adapter in `out` was trained on."""
    found = content_of(base)
    if found != manifest["base_id"]:
        raise UserError(
            f"{out}: this adapter was trained on a base with id {manifest['base_id']}, but "
            f"'{base}' has {found}; bring back that base, or train the adapter anew"
        )
