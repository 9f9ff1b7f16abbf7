"""Prompts into the store: read, folded, split and guarded against leaks before anything is generated.

They stream: what is read lies in a temporary SQLite file until it is divided, and so does what held-out prompts are
known by again among training prompts. Memory grows with neither.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, Self

from cai import canon, promptset, shipped
from cai.config import RunConfig
from cai.errors import UserError
from cai.manifest import Manifest
from cai.records import Prompt
from cai.store.store import READ, Store

Side = Literal["train", "held_out"]
SIDES: tuple[Side, ...] = ("train", "held_out")
_MARK = "prompts_id"
_CHUNK = 1000
LEAST_FAILURES = 20
"""As many prompts may fail before their share is looked at."""
_DDL = """
CREATE TABLE prompts (
    position INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, side TEXT NOT NULL, lot REAL NOT NULL, body BLOB NOT NULL
);
CREATE TABLE refused (place TEXT NOT NULL, reason TEXT NOT NULL);
"""


class Divided:
    """The prompts of a run: read once, duplicates folded, split by hash, near duplicates of held-out ones dropped."""

    def __init__(self, config: RunConfig, near: Path | None) -> None:
        """Raises UserError where a source cannot be read, too much of it is poison, or nothing is left to train on."""
        self._seed, section = config.run.seed, config.prompts
        self._kept = sqlite3.connect("", isolation_level=None)  # a temporary file, gone when it is closed
        self._kept.executescript("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;" + _DDL)
        self.n_read = 0
        sources = (promptset.iter_source(source, near=near, refuse=self._refuse) for source in section.sources)
        read = (prompt for source in sources for prompt in source)
        while some := list(islice(read, _CHUNK)):
            self.n_read += len(some)
            self._kept.executemany(
                "INSERT OR IGNORE INTO prompts (id, side, lot, body) VALUES (?, ?, ?, ?)",
                [self._row(prompt, section.held_out) for prompt in some],
            )
        n_kept = self._count()
        self.n_refused = int(self._kept.execute("SELECT count(*) FROM refused").fetchone()[0])
        self._check_refused(config.run.max_failure_rate)
        if not n_kept:
            raise UserError("prompts.sources: no prompt found in any source, expected at least one; check the paths")
        self.n_duplicates = self.n_read - n_kept
        self._limit("held_out", section.held_out_limit)
        self.n_leaks = self._drop_leaks(section.near_duplicate)
        self._limit("train", section.train_limit)
        if not self.count("train"):
            raise UserError(f"prompts: {n_kept} read, none left for training; lower prompts.held_out, or add prompts")

    def close(self) -> None:
        """Forget the prompts."""
        self._kept.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prompts(self, side: Side) -> Iterator[Prompt]:
        """Yield a side's prompts in the order of the sources."""
        rows = self._kept.execute("SELECT body FROM prompts WHERE side = ? ORDER BY position", (side,))
        for (body,) in rows:
            yield Prompt.parse(body)

    def count(self, side: Side) -> int:
        """Return how many prompts a side has."""
        return self._count("WHERE side = ?", side)

    @property
    def id(self) -> str:
        """Content id of both sides' prompts in order."""
        rows = self._kept.execute("SELECT side, id FROM prompts ORDER BY side, position")
        return canon.id_of_parts(f"{side} {id_}\n".encode() for side, id_ in rows)

    @property
    def counts(self) -> dict[str, int]:
        """How many were read, folded, dropped and kept."""
        return {
            "read": self.n_read + self.n_refused,
            "refused": self.n_refused,
            "duplicates_folded": self.n_duplicates,
            "leaks_dropped": self.n_leaks,
            "train": self.count("train"),
            "held_out": self.count("held_out"),
        }

    def refused(self) -> Iterator[tuple[str, str]]:
        """Yield (place, reason) of every row that holds what no model can be asked."""
        yield from self._kept.execute("SELECT place, reason FROM refused ORDER BY rowid")

    def _refuse(self, place: str, reason: str) -> None:
        self._kept.execute("INSERT INTO refused VALUES (?, ?)", (place, reason))

    def _check_refused(self, rate: float) -> None:
        n_rows = self.n_read + self.n_refused
        if self.n_refused > max(LEAST_FAILURES, rate * n_rows):
            place, reason = next(self.refused())
            raise UserError(
                f"prompts: {self.n_refused} of {n_rows} rows cannot be asked, more than run.max_failure_rate allows; "
                f"the first one is {place}: {reason}"
            )

    def _row(self, prompt: Prompt, held_out: float) -> tuple[str, str, float, bytes]:
        side = "held_out" if promptset.is_held_out(prompt, held_out, salt=str(self._seed)) else "train"
        return prompt.id, side, canon.unit_interval(self._seed, "limit", prompt.id), prompt.body()

    def _limit(self, side: Side, most: int | None) -> None:
        """Keep at most `most` prompts of a side, chosen by hash so that the choice survives added prompts."""
        if most is not None:
            self._kept.execute(
                "DELETE FROM prompts WHERE position IN "
                "(SELECT position FROM prompts WHERE side = ? ORDER BY lot, position LIMIT -1 OFFSET ?)",
                (side, most),
            )

    def _drop_leaks(self, threshold: float) -> int:
        leaks = promptset.overlaps(self.prompts("train"), self.prompts("held_out"), threshold)
        self._kept.executemany("DELETE FROM prompts WHERE id = ?", ((id_,) for id_ in leaks))
        return len(leaks)

    def _count(self, where: str = "", *values: str) -> int:
        return int(self._kept.execute(f"SELECT count(*) FROM prompts {where}", values).fetchone()[0])


def ingest(config: RunConfig, near: Path | None, store: Store, manifest: Manifest) -> None:
    """Read the prompts into the store unless the same ones are there already, and count them in the manifest."""
    with Divided(config, near) as divided:
        mark = divided.id
        if store.meta(_MARK) != mark:
            _keep(store, divided, mark)
        manifest.save(prompts=divided.counts)


def _keep(store: Store, divided: Divided, mark: str) -> None:
    store.clear_prompts()
    position = 0
    for side in SIDES:
        for prompt in divided.prompts(side):
            store.put_prompt(position, prompt, side)
            position += 1
            if position % _CHUNK == 0:
                store.flush()  # what waits to be written lies in memory
    for place, reason in divided.refused():
        store.put_walk(READ, place, mark, "failed", reason)
    store.put_meta(_MARK, mark)
    store.flush()


def sources_id(config: RunConfig, near: Path | None) -> dict[str, str]:
    """Return the content id of every file a run reads beside its constitution and templates, by name.

    What lies on the hub or in a folder of a data set is known by its name alone.
    """
    named = [source.path for source in config.prompts.sources if source.path]
    named += [path for path in (config.judge.few_shot, config.critique.few_shot) if path]
    found = {}
    for name in named:
        path = shipped.find(name, near=near)
        if path.is_file():
            found[name] = canon.id_of_files(path)
    return found


def places(config: RunConfig, near: Path | None) -> dict[str, str]:
    """Return where the files lie that only the config's own folder leads to, by key: what a copy of it has to name."""
    named = {f"prompts.sources.{i}.path": source.path for i, source in enumerate(config.prompts.sources)}
    named |= {"judge.few_shot": config.judge.few_shot, "critique.few_shot": config.critique.few_shot}
    found = {key: str(shipped.find(name, near=near)) for key, name in named.items() if name}
    return {key: place for key, place in found.items() if place != _elsewhere(named[key] or "")}


def _elsewhere(name: str) -> str | None:
    """Return what a name leads to from here and among the shipped files, or None."""
    try:
        return str(shipped.find(name))
    except UserError:
        return None
