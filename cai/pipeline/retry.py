"""Asking again about the prompts that failed, or that a server left without usable judgments; about nothing else."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from cai.engine.model import ASKED_AGAIN
from cai.errors import UserError
from cai.manifest import Manifest
from cai.pipeline.conduct import Conductor
from cai.pipeline.hearing import overridden
from cai.pipeline.meter import Meter
from cai.store.store import READ
from cai.trail import RunView

_UNHEARD = """
SELECT DISTINCT c.phase, c.prompt_id FROM ledger l JOIN records c ON c.id = l.subject
WHERE l.tag = 'judgment' AND json_extract(l.body, '$.verdict') = 'invalid'
    AND json_extract(l.body, '$.reason') IN (SELECT value FROM json_each(?))
    AND json_extract(l.body, '$.question_id') IN (SELECT value FROM json_each(?))
    AND c.phase NOT LIKE '% (superseded)'
    AND NOT EXISTS (
        SELECT 1 FROM ledger m WHERE m.subject = l.subject AND m.tag = 'judgment' AND m.seq > l.seq
            AND json_extract(m.body, '$.question_id') = json_extract(l.body, '$.question_id')
            AND json_extract(m.body, '$.order') = json_extract(l.body, '$.order')
    )
"""


def retry(folder: str, overrides: Sequence[str], meter: Meter) -> Conductor:
    """Return a conductor that walks a run's failed prompts again; what is done is not done again.

    Prompts with judgments that are invalid through the server (`cai.engine.model.ASKED_AGAIN`) are walked again too,
    and only those judgments are asked for. `overrides` may change what changes no answer, such as `engine.retries` or
    `engine.max_model_len`. Raises UserError where nothing has failed, or only rows that could not be read: those have
    to be mended where they stand.
    """
    with RunView(folder) as run:
        walked, refused = _failed(run.connection)
        unheard = _unheard(run)
        if not walked and not unheard and refused:
            raise UserError(
                f"{folder}: {refused} rows were refused when the prompts were read, and asking again will not help; "
                f"see `cai status {folder}`, mend the file, and give the run's command again"
            )
        if not walked and not unheard:
            raise UserError(
                f"{folder}: no prompt of this run has failed, and no judgment is invalid through its server; nothing "
                "to ask again"
            )
        config = overridden(run.config_here, overrides)
    Manifest(run.folder).save(done=None)
    return Conductor(config, near=run.folder, meter=meter, from_folder=True, again=unheard)


def _unheard(run: RunView) -> frozenset[tuple[str, str]]:
    """Return the walks (phase, prompt) with a judgment that counts and that the server's answer has left invalid."""
    present = [run.bench.question(principle).id for principle in run.constitution.principles]
    return frozenset(run.connection.execute(_UNHEARD, (json.dumps(sorted(ASKED_AGAIN)), json.dumps(present))))


def _failed(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many walks have failed, and how many rows were refused at reading."""
    row: Any = connection.execute(
        "SELECT coalesce(sum(phase <> ?), 0), coalesce(sum(phase = ?), 0) FROM walks WHERE state = 'failed'",
        (READ, READ),
    ).fetchone()
    return int(row[0]), int(row[1])
