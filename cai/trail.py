"""Reading a run: its files, its records, and where each comparison ended.

Everything an exporter, a report or an auditor asks of a run goes through `RunView`, which only reads.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Self

from pydantic import ValidationError

from cai import canon, constitution
from cai.config import RunConfig
from cai.constitution import Constitution
from cai.engine.model import Reply
from cai.errors import StoreError, UserError
from cai.manifest import kept_config, read_manifest
from cai.records import Comparison, Decision, Judgment, Prompt, Question, Response, Revision, kept, parse
from cai.stages.admit import Accounting, Admission, Arms, Gate
from cai.stages.judge import Bench, Seat
from cai.stages.settle import Asked, Settled, settle
from cai.store import ledger, schema
from cai.store.store import READ, find_replies
from cai.templates import Fence, Templates

_PROMPTS_AT_ONCE = 64
"""Prompts whose comparisons are read together: enough to make queries few, few enough to hold."""


@dataclass(frozen=True)
class Ended:
    """One comparison with everything that led to its end."""

    prompt: Prompt
    position: int
    comparison: Comparison
    arms: tuple[Response, Response | Revision]
    decisions: tuple[Decision, ...]
    settled: Settled
    admission: Admission

    @property
    def standing(self) -> tuple[Decision, ...]:
        """The decisions that count: what people did, and the judgments under the present text, judge and settings."""
        counted = self.settled.judgment_ids
        return tuple(d for d in self.decisions if not isinstance(d, Judgment) or d.id in counted)


class RunView:
    """One run folder, for reading."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        path = self.folder / "manifest.json"
        if not path.exists():
            raise UserError(f"{self.folder}: no manifest.json here; give the folder of a run (see `cai run --help`)")
        try:
            self.manifest: dict[str, Any] = read_manifest(path)
        except StoreError as error:  # who only reads has named the folder, and can name another
            raise UserError(str(error)) from error

    @cached_property
    def connection(self) -> Any:
        """A read-only connection to the store."""
        return schema.connect(self.folder / "store.sqlite", readonly=True)

    @cached_property
    def config_tree(self) -> dict[str, Any]:
        """The resolved configuration as its file has it."""
        return kept_config(self.folder)

    @cached_property
    def config(self) -> RunConfig:
        """The resolved configuration."""
        try:
            return RunConfig.model_validate(self.config_tree)
        except ValidationError as error:
            found = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()[:3])
            path = self.folder / "config.yaml"
            raise UserError(f"{path}: is no config of a run ({found}); restore it from a copy") from error

    @property
    def config_here(self) -> RunConfig:
        """The resolved configuration with the folder where the run lies now, from wherever it is asked for."""
        return self.config.model_copy(update={"run": self.config.run.model_copy(update={"dir": str(self.folder)})})

    @property
    def config_to_ask(self) -> RunConfig:
        """The resolved configuration with worked examples where the run found them, for asking its judge again."""
        places = self.manifest.get("places", {})
        found = {
            name: section.model_copy(update={"few_shot": places.get(f"{name}.few_shot", section.few_shot)})
            for name, section in (("judge", self.config.judge), ("critique", self.config.critique))
        }
        return self.config.model_copy(update=found)

    @cached_property
    def constitution(self) -> Constitution:
        """The constitution as the run used it."""
        return constitution.load(self.folder / "constitution.yaml")

    @cached_property
    def templates(self) -> Templates:
        """The templates as the run used them."""
        return Templates(self.folder / "prompts")

    @cached_property
    def bench(self) -> Bench:
        """The questions the run put to its judge. It cannot make prompts: fences need the key beside the runs."""
        return Bench(
            principles=self.constitution.principles,
            templates=self.templates,
            settings=self.config.judge,
            fence=Fence(b"reading"),
            judge_identity=self.manifest["models"]["judge"],
            seed=self.config.run.seed,
            few_shot_id=self.manifest.get("few_shot", ""),
            seats=tuple(Seat(mode, identity) for mode, identity in self.manifest["models"].get("judges", ())),
        )

    @property
    def models(self) -> dict[str, str]:
        """Who answers (`policy`) and who judges (`judge`); where that is a panel or a reward model, `critic` too."""
        known = dict(self.manifest["models"])
        seats = known.pop("judges", [])
        if not seats:
            return known
        return known | {"critic": known["judge"], "judge": self.bench.judges}

    def close(self) -> None:
        """Close the store, if it was opened."""
        if "connection" in vars(self):
            vars(self).pop("connection").close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- records -----------------------------------------------------------------------------------------------------

    def prompts(self, side: str | None = None) -> Iterator[tuple[int, Prompt]]:
        """Yield (position, prompt) in order."""
        where, args = ("WHERE side = ?", (side,)) if side else ("", ())
        rows = self.connection.execute(
            f"SELECT position, id, tag, body FROM prompts JOIN records ON records.id = prompts.prompt_id {where} "
            "ORDER BY position",
            args,
        )
        for position, *row in rows:
            yield position, kept(*row)

    def records(self, phase: str, prompt_id: str) -> dict[str, list[Any]]:
        """Return a prompt's records of one phase by kind, in the order they were written."""
        rows = self.connection.execute(
            "SELECT id, tag, body FROM records WHERE phase = ? AND prompt_id = ? ORDER BY rowid", (phase, prompt_id)
        )
        found: dict[str, list[Any]] = {}
        for row in rows:
            found.setdefault(row[1], []).append(kept(*row))
        return found

    def record(self, id_: str) -> Any | None:
        """Return any record or decision by id, or None."""
        for table in ("records", "ledger"):
            row = self.connection.execute(f"SELECT id, tag, body FROM {table} WHERE id = ?", (id_,)).fetchone()
            if row:
                return kept(*row)
        return None

    def call(self, key: str) -> tuple[dict[str, Any], Reply] | None:
        """Return (request with its texts in place, reply) of a call, or None."""
        found = find_replies(self.connection, [key]).get(key)
        if found is None:
            return None
        row = self.connection.execute("SELECT request FROM calls WHERE key = ?", (key,)).fetchone()
        request = canon.loads(row[0])
        request["messages"] = [{"role": role, "content": self._text(id_)} for role, id_ in request["messages"]]
        return request, found.reply()

    def _text(self, id_: str) -> str:
        row = self.connection.execute("SELECT text FROM texts WHERE id = ?", (id_,)).fetchone()
        return row[0] if row else ""

    @cached_property
    def questions(self) -> dict[str, Question]:
        """Every question any judgment of the run answers, by id."""
        rows = self.connection.execute("SELECT id, body FROM records WHERE tag = 'question'")
        return {id_: parse("question", body) for id_, body in rows}

    # -- where comparisons ended -------------------------------------------------------------------------------------

    @property
    def phases(self) -> list[str]:
        """The names of the phases that have begun, in order, without the evaluation."""
        return list(self.manifest["phases"])

    def due(self, comparison: Comparison, domain: str, bench: Bench | None = None) -> dict[str, Asked]:
        """Return the questions due on a comparison under the run's constitution, or under that of another bench."""
        return (bench or self.bench).due(comparison, domain)

    def ended(self, phase: str, *, side: str = "train") -> Iterator[Ended]:
        """Yield every comparison of a phase with its end: by prompt order, then as they were compared."""
        gate, prompts = Gate(self.config.pairs), self.prompts(side)
        while some := list(islice(prompts, _PROMPTS_AT_ONCE)):
            yield from self._ended(phase, some, gate)

    def _ended(self, phase: str, prompts: Sequence[tuple[int, Prompt]], gate: Gate) -> Iterator[Ended]:
        """As `ended`, for some prompts, with one query for their records and one for the decisions."""
        rules = self.config.judge
        comparisons, answers = self._compared(phase, [prompt.id for _, prompt in prompts])
        decided = ledger.of_comparisons(self.connection, (c.id for some in comparisons.values() for c in some))
        for position, prompt in prompts:
            for comparison in sorted(comparisons.get(prompt.id, ()), key=lambda c: _place(c, answers)):
                decisions = tuple(decided.get(comparison.id, ()))
                settled = settle(
                    comparison.id,
                    decisions,
                    self.due(comparison, prompt.domain),
                    on_disagreement=rules.on_disagreement,
                    tie_margin=rules.tie_margin,
                )
                a, b = answers[comparison.a_id], answers[comparison.b_id]
                arms = Arms(a.text, b.text, a.finish_reason == "length", b.finish_reason == "length")
                admission = gate.admit(settled, comparison, prompt, arms)
                yield Ended(prompt, position, comparison, (a, b), decisions, settled, admission)

    def _compared(self, phase: str, prompt_ids: list[str]) -> tuple[dict[str, list[Comparison]], dict[str, Any]]:
        """Return (a phase's comparisons by prompt, the answers they compare by id)."""
        rows = self.connection.execute(
            "SELECT id, tag, body FROM records WHERE phase = ? AND prompt_id IN (SELECT value FROM json_each(?)) "
            "AND tag IN ('response', 'revision', 'comparison') ORDER BY rowid",
            (phase, json.dumps(prompt_ids)),
        )
        comparisons: dict[str, list[Comparison]] = {}
        answers: dict[str, Any] = {}
        for row in rows.fetchall():
            record = kept(*row)
            if isinstance(record, Comparison):
                comparisons.setdefault(record.prompt_id, []).append(record)
            else:
                answers[record.id] = record
        # The evaluation compares answers that are kept under its arms' own phases.
        named = {id_ for some in comparisons.values() for c in some for id_ in (c.a_id, c.b_id)}
        return comparisons, answers | {id_: self.record(id_) for id_ in named - answers.keys()}

    def accounting(self, phase: str, *, side: str = "train") -> Accounting:
        """Return where a phase's comparisons ended, counted."""
        counted = Accounting()
        for end in self.ended(phase, side=side):
            counted.count(end.admission)
        return counted


def _place(comparison: Comparison, answers: dict[str, Any]) -> tuple[str, int, int]:
    """Return what orders a prompt's comparisons: their kind, then the samples they compare."""
    a, b = answers[comparison.a_id], answers[comparison.b_id]
    return comparison.source, getattr(a, "sample_index", 0), getattr(b, "sample_index", -1)


def progress(run: RunView) -> dict[str, Any]:
    """Return how far a run is, from its files alone."""
    query = run.connection.execute
    prompts = run.manifest.get("prompts") or {}
    walks = []
    for phase, done, failed in query(
        "SELECT phase, sum(state = 'done'), sum(state = 'failed') FROM walks GROUP BY phase"
    ):
        side = "refused" if phase == READ else "held_out" if phase.startswith("evaluate") else "train"
        walks.append({"phase": phase, "done": done, "failed": failed, "due": prompts.get(side, 0)})
    failures = query("SELECT phase, prompt_id, detail FROM walks WHERE state = 'failed' LIMIT 20").fetchall()
    return {
        "run": str(run.folder),
        "state": "done" if run.manifest["done"] else "unfinished",
        "walks": walks,
        "failures": [{"phase": p, "prompt_id": i, "reason": d} for p, i, d in failures],
        "calls": query("SELECT count(*) FROM calls").fetchone()[0],
        "ledger": ledger.head(run.connection).count,
    }
