"""An index of a run's decisions, so that pages of them, filtered and searched, come at once.

The ledger keeps a decision as JSON, which is right for hashing and slow for filtering. The index is a private,
throw-away SQLite file beside nothing: it copies what the filters need out of the store (which it opens for reading
only), follows it as it grows, and is gone with the process. 100,000 decisions take about 50 MB.
"""

from __future__ import annotations

import re
import sqlite3
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cai import canon
from cai.trail import RunView

_TABLES = """
PRAGMA cache_size = -65536;
CREATE TABLE questions (id TEXT PRIMARY KEY, principle TEXT, mode TEXT) WITHOUT ROWID;
CREATE TABLE comparisons (
    c INTEGER PRIMARY KEY, id TEXT UNIQUE, phase TEXT, source TEXT, prompt_id TEXT, a_id TEXT, b_id TEXT,
    position INTEGER, domain TEXT, source_id TEXT, asked TEXT
);
CREATE INDEX comparisons_by_prompt ON comparisons (prompt_id);
CREATE TABLE texts (c INTEGER PRIMARY KEY, folded TEXT);
CREATE TABLE decisions (
    seq INTEGER PRIMARY KEY, id TEXT, kind TEXT, c INTEGER, phase TEXT, source TEXT, question TEXT,
    principle TEXT, mode TEXT, ord TEXT, verdict TEXT, p_a REAL, margin REAL, reason TEXT, flag TEXT, swapped INTEGER
);
CREATE INDEX decisions_by_comparison ON decisions (c, question);
CREATE INDEX decisions_by_id ON decisions (id);
CREATE INDEX decisions_by_margin ON decisions (margin);
CREATE TABLE ends (c INTEGER PRIMARY KEY, state TEXT, reason TEXT, label TEXT, p_a REAL, confidence REAL);
CREATE TABLE hits (q TEXT, c INTEGER, PRIMARY KEY (q, c)) WITHOUT ROWID;
"""
_QUESTIONS = """
INSERT OR IGNORE INTO questions
SELECT id, json_extract(body, '$.principle_id'), json_extract(body, '$.mode') FROM store.records WHERE tag = 'question'
"""
_COMPARISONS = """
INSERT OR IGNORE INTO comparisons
SELECT NULL, c.id, c.phase, json_extract(c.body, '$.source'), c.prompt_id, json_extract(c.body, '$.a_id'),
    json_extract(c.body, '$.b_id'), o.position, json_extract(p.body, '$.domain'), json_extract(p.body, '$.source_id'),
    substr(json_extract(p.body, '$.messages[#-1].content'), 1, 240)
FROM store.records c LEFT JOIN store.records p ON p.id = c.prompt_id
LEFT JOIN store.prompts o ON o.prompt_id = c.prompt_id
WHERE c.tag = 'comparison' AND c.rowid > ?
"""
_TEXTS = """
INSERT OR REPLACE INTO texts
SELECT c.c, folded(p.body, a.body, b.body) FROM comparisons c
LEFT JOIN store.records p ON p.id = c.prompt_id
LEFT JOIN store.records a ON a.id = c.a_id LEFT JOIN store.records b ON b.id = c.b_id
WHERE c.c > ?
"""
_DECISIONS = """
INSERT INTO decisions
SELECT l.seq, l.id, l.tag, c.c, c.phase, c.source, json_extract(l.body, '$.question_id'), q.principle, q.mode,
    json_extract(l.body, '$.order'), coalesce(json_extract(l.body, '$.verdict'), json_extract(l.body, '$.label')),
    json_extract(l.body, '$.p_a'), abs(json_extract(l.body, '$.p_a') - 0.5), json_extract(l.body, '$.reason'),
    json_extract(l.body, '$.flag'), 0
FROM store.ledger l LEFT JOIN comparisons c ON c.id = l.subject
LEFT JOIN questions q ON q.id = json_extract(l.body, '$.question_id')
WHERE l.seq > ? AND l.tag IN ('judgment', 'override')
"""
_SWAPPED = """
UPDATE decisions SET swapped = 1 WHERE seq IN (
    SELECT s.value FROM decisions d JOIN decisions o
        ON o.c = d.c AND o.question = d.question AND o.ord <> d.ord AND o.verdict <> d.verdict
    JOIN json_each(json_array(d.seq, o.seq)) s
    WHERE d.seq > ? AND d.verdict IN ('a', 'b') AND o.verdict IN ('a', 'b')
)
"""
LOW_MARGIN = 0.1
"""A decision whose probability lies nearer to one half than this is called narrow."""
PAGE = 50
"""Decisions on one page."""
SORTS = {
    "made": ("decisions.seq", "oldest first"),
    "newest": ("decisions.seq DESC", "newest first"),
    "narrowest": ("decisions.margin NULLS LAST, decisions.seq", "narrowest first"),
    "surest": ("decisions.margin DESC, decisions.seq DESC", "surest first"),
}
"""Orders a list can have: the SQL, and how it is called."""


@dataclass(frozen=True)
class Filter:
    """What a list of decisions is narrowed to; None narrows nothing."""

    phase: str | None = None
    principle: str | None = None
    verdict: str | None = None
    order: str | None = None
    source: str | None = None
    kind: str | None = None
    """`judge`, `code` or `person`."""
    ended: str | None = None
    """Where the comparison ended, such as `kept`."""
    only: str | None = None
    """`narrow`, `swapped`, `unusable` or `flagged`."""
    q: str | None = None
    """Words that the prompt or an answer contains, or the beginning of an id."""
    sort: str = "made"
    page: int = 1

    def where(self) -> tuple[str, list[Any]]:
        """Return the SQL condition and its values.

        The plus before `c` keeps SQLite from driving the query from a long list of comparisons: one pass over the
        decisions is at most as slow as that list is long.
        """
        parts, values = ["1"], []
        for name, column in _COLUMNS.items():
            if (value := getattr(self, name)) is not None:
                parts.append(f"{column} = ?")
                values.append(value)
        if self.kind:
            parts.append(_KINDS[self.kind])
        if self.only:
            parts.append(_ONLY[self.only])
        if self.ended:
            parts.append("+c IN (SELECT c FROM ends WHERE state = ?)")
            values.append(self.ended)
        if self.q and self.q.startswith(canon.ID_PREFIX):
            parts.append("(id GLOB ? OR c IN (SELECT c FROM comparisons WHERE id GLOB ? OR prompt_id GLOB ?))")
            values += 3 * [f"{_HEX.sub('', self.q)}*"]
        elif self.q:
            parts.append("+c IN (SELECT c FROM hits WHERE q = ?)")
            values.append(self.q)
        return " AND ".join(parts), values


_COLUMNS = {"phase": "phase", "principle": "principle", "verdict": "verdict", "order": "ord", "source": "source"}
_KINDS = {
    "judge": "kind = 'judgment' AND mode <> 'check'",
    "code": "mode = 'check'",
    "person": "kind = 'override'",
}
_ONLY = {
    "narrow": f"margin < {LOW_MARGIN}",
    "swapped": "swapped = 1",
    "unusable": "kind = 'judgment' AND p_a IS NULL",
    "flagged": "flag IS NOT NULL",
}
CHOICES = {"kind": tuple(_KINDS), "only": tuple(_ONLY), "order": ("ab", "ba"), "sort": tuple(SORTS)}
"""Values of the filters that do not depend on the run."""


_HEX = re.compile(r"[^b2:0-9a-f]")
_SEARCH = """
INSERT INTO hits SELECT ?1, c FROM texts WHERE instr(folded, ?2)
UNION SELECT ?1, c FROM comparisons WHERE source_id = ?1
"""
_MOST_SEARCHES = 16
"""So many searches are remembered, so that turning pages does not read every text again."""


def _folded(prompt: str | None, a: str | None, b: str | None) -> str:
    """Return the texts of a comparison as they are searched: case folded, one after the other."""
    said = [m["content"] for m in canon.loads(prompt)["messages"]] if prompt else []
    said += [canon.loads(body)["text"] for body in (a, b) if body]
    return "\n".join(said).casefold()


class DecisionIndex:
    """The index of one run. Its methods may be called from any thread."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "store.sqlite"
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._made_of: tuple[int, int] = (0, -1)
        self._set_aside = 0
        self._values: dict[str, list[str]] = {}
        self._values_of: tuple[int, int] | None = None
        self._searched: dict[str, tuple[int, int]] = {}

    def follow(self, run: RunView) -> int:
        """Take in what the store has gained since the last look, and return the ledger's length as of now."""
        with self._lock:
            return self._follow(run)

    def _follow(self, run: RunView) -> int:
        # What a changed run sets aside changes its phase in place; then everything is read anew.
        set_aside = sum(
            run.connection.execute("SELECT count(*) FROM records WHERE phase = ?", (f"{p} (superseded)",)).fetchone()[0]
            for p in run.phases
        )
        if self._db is None or set_aside != self._set_aside:
            self._open(set_aside)
        assert self._db is not None
        self._db.execute("BEGIN")
        try:
            self._made_of = self._take_in(self._db.execute, *self._made_of)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return self._made_of[1] + 1

    @staticmethod
    def _take_in(execute: Callable[..., sqlite3.Cursor], rowid: int, seq: int) -> tuple[int, int]:
        """Copy what is newer than this record and this ledger row, in one snapshot of the store; return the newest."""
        last = execute("SELECT coalesce(max(seq), -1) FROM store.ledger").fetchone()[0]
        newest = execute("SELECT coalesce(max(rowid), 0) FROM store.records").fetchone()[0]
        if newest > rowid:
            before = execute("SELECT coalesce(max(c), 0) FROM comparisons").fetchone()[0]
            execute("DELETE FROM hits")
            execute(_QUESTIONS)
            execute(_COMPARISONS, (rowid,))
            execute(_TEXTS, (before,))
        if last > seq:
            execute(_DECISIONS, (seq,))
            execute(_SWAPPED, (seq,))
        return newest, last

    def _open(self, set_aside: int) -> None:
        if self._db:
            self._db.close()
        self._db = sqlite3.connect("file:?mode=rwc", uri=True, check_same_thread=False, isolation_level=None)
        self._db.executescript(_TABLES)
        self._db.create_function("folded", 3, _folded, deterministic=True)
        self._db.execute("ATTACH ? AS store", (f"{self._path.resolve().as_uri()}?mode=ro",))
        self._made_of, self._set_aside = (0, -1), set_aside
        self._searched, self._values_of = {}, None

    def close(self) -> None:
        """Forget everything."""
        with self._lock:
            if self._db:
                self._db.close()
                self._db = None

    def query(self, sql: str, values: Iterable[Any] = ()) -> list[dict[str, Any]]:
        """Return the rows of a query of our own over the index's tables."""
        with self._lock:
            assert self._db is not None, "follow the run first"
            cursor = self._db.execute(sql, tuple(values))
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor]

    def page(self, wanted: Filter) -> tuple[int, list[dict[str, Any]]]:
        """Return how many decisions there are and those of the page that is wanted."""
        where, values = wanted.where()
        if wanted.q and not wanted.q.startswith(canon.ID_PREFIX):
            self._search(wanted.q)
        total = self.query(f"SELECT count(*) AS n FROM decisions WHERE {where}", values)[0]["n"]
        rows = self.query(
            f"""SELECT decisions.*, comparisons.id AS comparison, asked, source_id, ends.state, ends.label
            FROM (SELECT * FROM decisions WHERE {where} ORDER BY {SORTS[wanted.sort][0]} LIMIT ? OFFSET ?) decisions
            LEFT JOIN comparisons USING (c) LEFT JOIN ends USING (c)
            ORDER BY {SORTS[wanted.sort][0]}""",
            [*values, PAGE, PAGE * (wanted.page - 1)],
        )
        return total, rows

    def _search(self, q: str) -> None:
        """Remember which comparisons hold these words, unless they are remembered already."""
        with self._lock:
            assert self._db is not None, "follow the run first"
            if self._searched.get(q) == self._made_of:
                return
            if len(self._searched) >= _MOST_SEARCHES:
                self._searched.clear()
            self._db.execute("BEGIN")
            self._db.execute(
                "DELETE FROM hits WHERE q = ? OR q NOT IN (SELECT value FROM json_each(?))",
                (q, canon.dumps(list(self._searched)).decode()),
            )
            self._db.execute(_SEARCH, (q, q.casefold()))
            self._db.execute("COMMIT")
            self._searched[q] = self._made_of

    def values(self, column: str) -> list[str]:
        """Return the different values of a column of the decisions, in alphabetical order."""
        if self._values_of != self._made_of:
            self._values, self._values_of = {}, self._made_of
        if column not in self._values:
            rows = self.query(f"SELECT DISTINCT {column} AS v FROM decisions WHERE {column} IS NOT NULL ORDER BY 1")
            self._values[column] = [row["v"] for row in rows]
        return self._values[column]

    def keep_ends(self, ends: Iterable[Mapping[str, Any]]) -> None:
        """Remember where every comparison ended, so that decisions can be filtered by it."""
        columns = ("state", "reason", "label", "p_a", "confidence", "comparison")
        with self._lock:
            assert self._db is not None, "follow the run first"
            self._db.execute("BEGIN")
            self._db.execute("DELETE FROM ends")
            self._db.executemany(
                "INSERT OR REPLACE INTO ends SELECT c, ?, ?, ?, ?, ? FROM comparisons WHERE id = ?",
                ([end[column] for column in columns] for end in ends),
            )
            self._db.execute("COMMIT")
