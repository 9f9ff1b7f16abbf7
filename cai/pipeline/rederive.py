"""`cai run --verify`: a finished run derived again from what it kept, without a call.

Every prompt is walked again with a judge and a policy that know only the kept replies. What comes of it must be what
lies in the store, row for row: records, decisions, and the exported pairs byte for byte. Beside that every id is
computed anew from the content it names, and the ledger's chain is followed.
"""

from __future__ import annotations

import sqlite3
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cai import canon, pairs
from cai.engine.model import key_of
from cai.errors import CaiError, StoreError, UserError
from cai.pipeline import training
from cai.pipeline.conduct import Conductor, PhaseTurn
from cai.pipeline.ingest import SIDES, Divided
from cai.pipeline.serving import Fleet, Lazy
from cai.records import Prompt, Record, parse
from cai.stages.walk import Walked
from cai.store import ledger, schema
from cai.store.calls import Recorded
from cai.store.store import Kept, find_replies
from cai.trail import RunView

_SHOWN = 50


class NotKept(CaiError):
    """A request whose reply the run does not hold."""


class KeptOnly:
    """A store that only reads. What would be written is looked up instead; what is not there is a fault."""

    is_final = True

    def __init__(self, connection: sqlite3.Connection, faults: Faults) -> None:
        self.connection = connection
        self._faults = faults

    def replies(self, keys: Sequence[str]) -> dict[str, Kept]:
        """Return the kept replies, under the ids that their contents have now."""
        found = find_replies(self.connection, keys)
        return {key: kept._replace(reply_id=canon.id_of_bytes(kept.content.encode())) for key, kept in found.items()}

    def put_record(self, record: Record) -> None:
        """Look whether a record that belongs to no prompt is there."""
        self.check("records", record.id, record.tag, record.body().decode())

    def n_failed(self, phase: str, inputs: str) -> int:
        """Return 0: who failed is looked at prompt by prompt."""
        return 0

    def check(self, table: str, id_: str, tag: str, body: str) -> None:
        """Look whether a row is there with this content."""
        self._faults.checked[table] += 1
        row = self.connection.execute(f"SELECT tag, body FROM {table} WHERE id = ?", (id_,)).fetchone()
        if row != (tag, body):
            self._faults.add(f"{table}: {tag} {id_} {'is missing' if row is None else 'has another content'}")


class Faults:
    """What was looked at, and what was found wrong."""

    def __init__(self) -> None:
        self.checked: Counter[str] = Counter()
        self.found: list[str] = []
        self.count = 0

    def add(self, sentence: str) -> None:
        """Note a fault; the first fifty are kept in words."""
        self.count += 1
        if len(self.found) < _SHOWN:
            self.found.append(sentence)


class Rederiving(Conductor):
    """Goes the way of a run without leaving a trace."""

    async def rederive(self) -> dict[str, Any]:
        """Return what was checked and which faults were found. Raises UserError where the run is not finished."""
        self._lock.acquire()
        try:
            self._prepare()
            if not self.manifest["done"]:
                raise UserError(f"{self.folder}: this run is not finished; run it to its end first")
            connection = schema.connect(self.folder / "store.sqlite", readonly=True)
            self.faults = Faults()
            self.store: Any = KeptOnly(connection, self.faults)
            self.siblings, self.fleet = None, Fleet(self.config, self.folder, self.meter)
            with self.meter.stage("ids", 1):
                self._ids(connection)
            self._prompts(connection)
            try:
                await self._phases()
            except (NotKept, StoreError) as error:
                self.faults.add(str(error))
            self._exports()
            return {"checked": dict(self.faults.checked), "n_faults": self.faults.count, "faults": self.faults.found}
        finally:
            self._lock.release()

    def _recorded(self, model: Lazy) -> Recorded:
        def refuse() -> None:
            raise NotKept("calls: a reply that the walk needs is missing")

        return Recorded(model, self.store, self.meter.tally, before_call=refuse)

    async def walk_all(self, name: str, walk: Any, inputs_id: str, *, side: str) -> None:
        """Walk every prompt again and compare."""
        stage_name, n = f"verify {name}", int(self.manifest["prompts"][side])
        with RunView(self.folder) as run, self.meter.stage(stage_name, n) as stage:
            for _, prompt in run.prompts(side):
                await self._again(prompt, name, walk, inputs_id)
                stage.done += 1

    async def _again(self, prompt: Prompt, name: str, walk: Any, inputs_id: str) -> None:
        self.faults.checked["walks"] += 1
        row = self.store.connection.execute(
            "SELECT inputs, state FROM walks WHERE phase = ? AND prompt_id = ?", (name, prompt.id)
        ).fetchone()
        if row == (inputs_id, "failed"):
            return
        if row != (inputs_id, "done"):
            self.faults.add(f"walks: {name} of {prompt.id} was not done with these inputs")
            return
        try:
            walked: Walked = await walk(prompt)
        except (NotKept, StoreError) as error:
            self.faults.add(f"walks: {name} of {prompt.id}: {error}")
            return
        for record in walked.written:
            self.store.check("records", record.id, record.tag, record.body().decode())
        for decision in walked.judgments:
            self.store.check("ledger", decision.id, decision.tag, decision.body().decode())
        kept = self.store.connection.execute(
            "SELECT count(*) FROM records WHERE phase = ? AND prompt_id = ?", (name, prompt.id)
        ).fetchone()[0]
        if kept != len({record.id for record in walked.written}):
            self.faults.add(f"records: {name} of {prompt.id} has {kept}, its walk writes {len(walked.written)}")

    async def _train(self, turn: PhaseTurn, base: str, *rest: Any) -> Path:
        """Return the checkpoint that was trained, after a look at the rows it was trained on."""
        out = training.checkpoint_dir(self.folder, turn.name)
        entry = self.manifest["phases"][turn.name].get("train")
        self.faults.checked["checkpoints"] += 1
        with RunView(self.folder) as run:
            rows = pairs.phase_rows(run, turn.name, turn.phase.train)
        if entry is None or entry["rows_id"] != pairs.rows_id(rows):
            self.faults.add(f"checkpoints: {turn.name} was trained on other rows than the run has now")
        if turn.phase.train == "reward":
            return out
        trusted = self.config.models.policy.trust_remote_code
        return await training.merged(out, base, self.meter, trust_remote_code=trusted)

    def _result(self, n_failed: int, stale: list[str]) -> Any:
        return None

    def _ids(self, connection: sqlite3.Connection) -> None:
        for id_, text in connection.execute("SELECT id, text FROM texts"):
            self._same("texts", id_, canon.text_id(text))
        for key, request, reply, reply_id in connection.execute("SELECT key, request, reply, reply_id FROM calls"):
            self._same("calls", key, key_of(request.encode()))
            self._same("replies", reply_id, canon.id_of_bytes(reply.encode()))
        for id_, tag, body in connection.execute("SELECT id, tag, body FROM records"):
            self._same("record ids", id_, parse(tag, body).id)
        self.faults.checked["chain"] = ledger.head(connection).count
        for fault in ledger.verify(connection):
            self.faults.add(f"ledger: {fault.found}")

    def _same(self, table: str, kept: str, computed: str) -> None:
        self.faults.checked[table] += 1
        if kept != computed:
            self.faults.add(f"{table}: {kept} does not follow from its content")

    def _prompts(self, connection: sqlite3.Connection) -> None:
        if self._from_folder:
            return
        kept = connection.execute("SELECT prompt_id, side FROM prompts ORDER BY position").fetchall()
        with Divided(self.config, self.near) as divided:
            read = [(prompt.id, side) for side in SIDES for prompt in divided.prompts(side)]
        self.faults.checked["prompts"] = len(read)
        if kept != read:
            self.faults.add("prompts: their sources do not give the prompts of this run, in this order")

    def _exports(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            again = Path(folder) / "pairs.jsonl"
            try:
                with RunView(self.folder) as run:
                    pairs.export(run, again)
            except StoreError as error:
                self.faults.add(str(error))
                return
            for made in (again, pairs.provenance_path(again)):
                self.faults.checked["exported rows"] += sum(1 for _ in _lines(made))
                if not _equal(made, self.folder / made.name):
                    self.faults.add(f"{made.name}: does not follow from the store")


def _lines(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        yield from file


def _equal(one: Path, other: Path) -> bool:
    if not other.exists() or one.stat().st_size != other.stat().st_size:
        return False
    return all(a == b for a, b in zip(_lines(one), _lines(other), strict=True))
