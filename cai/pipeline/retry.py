"""Asking again about the prompts that failed, and about nothing else."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

from cai.errors import UserError
from cai.manifest import Manifest
from cai.pipeline.conduct import Conductor
from cai.pipeline.hearing import overridden
from cai.pipeline.meter import Meter
from cai.store.store import READ
from cai.trail import RunView


def retry(folder: str, overrides: Sequence[str], meter: Meter) -> Conductor:
    """Return a conductor that walks a run's failed prompts again; what is done is not done again.

    `overrides` may change what changes no answer, such as `engine.retries`. Raises UserError where nothing has failed,
    or only rows that could not be read: those have to be mended where they stand.
    """
    with RunView(folder) as run:
        walked, refused = _failed(run.connection)
        if not walked and refused:
            raise UserError(
                f"{folder}: {refused} rows were refused when the prompts were read, and asking again will not help; "
                f"see `cai status {folder}`, mend the file, and give the run's command again"
            )
        if not walked:
            raise UserError(f"{folder}: no prompt of this run has failed; nothing to ask again")
        config = overridden(run.config_here, overrides)
    Manifest(run.folder).save(done=None)
    return Conductor(config, near=run.folder, meter=meter, from_folder=True)


def _failed(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many walks have failed, and how many rows were refused at reading."""
    row: Any = connection.execute(
        "SELECT coalesce(sum(phase <> ?), 0), coalesce(sum(phase = ?), 0) FROM walks WHERE state = 'failed'",
        (READ, READ),
    ).fetchone()
    return int(row[0]), int(row[1])
