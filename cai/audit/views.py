"""The run as tables for SQL: documented views over the store, and the settled pairs beside them.

The store itself stays attached read-only under the name `store`; the views are made in memory. What `settle` and the
filters say of a pair is not stored anywhere, so `pairs` is worked out when a query first asks for it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, Self

from cai import canon, checks
from cai.audit.questions import MEASURED
from cai.errors import UserError
from cai.evaluate.intervals import wilson
from cai.pairs import provenance_path
from cai.records import Override, parse
from cai.review.queues import Strata
from cai.stages.judge import OPTIONS
from cai.stages.judge.signs import signs
from cai.stages.settle import Vote, settle
from cai.trail import Ended, RunView

LIMIT_S = 60.0
"""A query that takes longer is stopped."""
_PAIRS_AT_ONCE = 512
_MOST_LOOKED_AT = 20_000
"""Characters of a text in which signs that it speaks to a judge are looked for."""
_LIST = re.compile(r"(?m)^\s*(?:[-*\u2022]|\d+[.)])\s+\S")

VIEWS = {
    "decisions": "one row per judgment: pair, principle, order, verdict, probabilities, call and its price",
    "parts": "one row per reading of a judgment that rests on several: samples, graded answers, members of a panel",
    "pairs": "one row per comparison: both answers, where it ended and why, who had the last word",
    "votes": "one row per pair and principle: how it stood after both orders",
    "calls": "one row per model call: kind, model, tokens, attempts, seconds, whether it could be used",
    "reviews": "one row per vote ever cast: item, queue, stratum, chance, choice, whether it still holds",
    "overrides": "one row per label that people set: author, reason, blind, whether it still holds",
    "principles": "one row per principle of the constitution, with its line",
    "critiques": "one row per critique and what was made of it",
    "prompts": "one row per prompt: side, domain, text",
    "walks": "one row per prompt and phase: done or failed and why",
    "sessions": "one row per session of the run: seconds, calls, tokens",
    "recalibrated": "one row per curve and bin: the judge's probabilities against people, before and after",
}
"""Every table a query can name. docs/audit.md lists the columns."""

_UNORDERED = "('check', 'score', 'rubric', 'reward_model')"
"""Modes in which neither answer stands before the other."""
_SQL = f"""
CREATE TEMP TABLE present (question_id TEXT PRIMARY KEY);
CREATE TEMP VIEW decisions AS
SELECT l.id AS decision_id, l.seq, l.hash AS row_hash, l.subject AS pair_id, c.prompt_id, c.phase,
    json_extract(l.body, '$.order') AS "order", json_extract(q.body, '$.principle_id') AS principle_id,
    json_extract(l.body, '$.verdict') AS verdict, json_extract(l.body, '$.p_a') AS p_a,
    CASE WHEN json_extract(q.body, '$.mode') IN {_UNORDERED} THEN NULL
        WHEN json_extract(l.body, '$.order') = 'ab' THEN json_extract(l.body, '$.p_a')
        ELSE 1 - json_extract(l.body, '$.p_a') END AS p_first,
    CASE WHEN json_extract(l.body, '$.verdict') NOT IN ('a', 'b') OR json_extract(q.body, '$.mode') IN {_UNORDERED}
        THEN NULL
        ELSE substr(json_extract(l.body, '$.order'), 1, 1) = json_extract(l.body, '$.verdict') END AS picked_first,
    json_extract(l.body, '$.reason') AS reason, json_extract(l.body, '$.flag') AS flag,
    p.question_id IS NOT NULL AND c.phase NOT LIKE '% (superseded)'
        AND (json_extract(l.body, '$.verdict') <> 'invalid' OR NOT EXISTS (
            SELECT 1 FROM store.ledger n WHERE n.subject = l.subject AND n.tag = 'judgment' AND n.seq > l.seq
            AND json_extract(n.body, '$.question_id') = q.id
            AND json_extract(n.body, '$.order') = json_extract(l.body, '$.order'))) AS counts,
    json_extract(l.body, '$.question_id') AS question_id, json_extract(q.body, '$.mode') AS mode,
    json_extract(q.body, '$.judge') AS judge, json_extract(q.body, '$.text_id') AS text_id,
    json_extract(q.body, '$.template_id') AS template_id, json_extract(l.body, '$.call_key') AS call_key,
    json_extract(l.body, '$.reply_id') AS reply_id, json_extract(k.reply, '$.logprobs.A') AS logprob_A,
    json_extract(k.reply, '$.logprobs.B') AS logprob_B, json_extract(k.reply, '$.outside') AS outside,
    json_extract(k.reply, '$.finish_reason') AS finish_reason, k.reply AS raw_reply,
    CASE WHEN json_extract(q.body, '$.mode') = 'cot' AND k.kind = 'score' THEN
        (SELECT t.text FROM store.texts t WHERE t.id = json_extract(k.request, '$.messages[#-3][1]')) END AS reasoning,
    json_extract(k.reply, '$.n_prompt') AS n_prompt, json_extract(k.reply, '$.n_completion') AS n_completion,
    json_extract(k.circumstances, '$.attempts') AS attempts, json_extract(k.circumstances, '$.server') AS server,
    json_extract(k.circumstances, '$.duration_s') AS duration_s, k.made_at
FROM store.ledger l
LEFT JOIN store.records c ON c.id = l.subject
LEFT JOIN store.records q ON q.id = json_extract(l.body, '$.question_id')
LEFT JOIN present p ON p.question_id = q.id
LEFT JOIN store.calls k ON k.key = json_extract(l.body, '$.call_key')
WHERE l.tag = 'judgment';

CREATE TEMP VIEW parts AS
SELECT l.id AS decision_id, l.subject AS pair_id, json_extract(q.body, '$.principle_id') AS principle_id,
    json_extract(l.body, '$.order') AS "order", json_extract(p.value, '$.name') AS name,
    json_extract(p.value, '$.value') AS value, json_extract(p.value, '$.reason') AS reason,
    json_extract(p.value, '$.prior') AS prior, json_extract(p.value, '$.call_key') AS call_key,
    json_extract(p.value, '$.reply_id') AS reply_id, k.reply AS raw_reply
FROM store.ledger l JOIN json_each(l.body, '$.parts') p
LEFT JOIN store.records q ON q.id = json_extract(l.body, '$.question_id')
LEFT JOIN store.calls k ON k.key = json_extract(p.value, '$.call_key')
WHERE l.tag = 'judgment';

CREATE TEMP VIEW calls AS
SELECT key AS call_key, kind, model, request, reply, reply_id, made_at,
    json_extract(reply, '$.error') AS error, json_extract(reply, '$.finish_reason') AS finish_reason,
    json_extract(reply, '$.n_prompt') AS n_prompt, json_extract(reply, '$.n_completion') AS n_completion,
    json_extract(circumstances, '$.n_cached') AS n_cached, json_extract(circumstances, '$.attempts') AS attempts,
    json_extract(circumstances, '$.duration_s') AS duration_s, json_extract(circumstances, '$.road') AS road,
    json_extract(circumstances, '$.server') AS server
FROM store.calls;

CREATE TEMP VIEW critiques AS
SELECT r.id AS critique_id, r.phase, r.prompt_id, json_extract(r.body, '$.principle_id') AS principle_id,
    json_extract(r.body, '$.round') AS round, json_extract(r.body, '$.answer_id') AS answer_id,
    json_extract(r.body, '$.text') AS text, json_extract(r.body, '$.passed') AS passed,
    json_extract(v.body, '$.text') AS revision, v.id AS revision_id,
    (WITH RECURSIVE back(id) AS (
        SELECT json_extract(r.body, '$.answer_id')
        UNION ALL SELECT json_extract(s.body, '$.answer_id') FROM back JOIN store.records s ON s.id = back.id
            WHERE s.tag = 'revision')
    SELECT s.id FROM back JOIN store.records s ON s.id = back.id WHERE s.tag = 'response') AS first_answer_id
FROM store.records r
LEFT JOIN store.records v ON v.tag = 'revision' AND v.phase = r.phase AND v.prompt_id = r.prompt_id
    AND json_extract(v.body, '$.critique_id') = r.id
WHERE r.tag = 'critique';

CREATE TEMP VIEW prompts AS
SELECT p.position, p.prompt_id, p.side, json_extract(r.body, '$.source_id') AS source_id,
    json_extract(r.body, '$.domain') AS domain,
    json_extract(r.body, '$.messages[#-1].content') AS text, json_extract(r.body, '$.messages') AS messages
FROM store.prompts p JOIN store.records r ON r.id = p.prompt_id;

CREATE TEMP VIEW walks AS SELECT phase, prompt_id, state, detail FROM store.walks;

CREATE TEMP VIEW reviews AS
SELECT v.id AS vote_id, v.seq, json_extract(v.body, '$.item_id') AS item_id, v.subject AS pair_id,
    json_extract(i.body, '$.queue') AS queue, json_extract(i.body, '$.stratum') AS stratum,
    json_extract(i.body, '$.inclusion') AS inclusion, json_extract(i.body, '$.principle_id') AS principle_id,
    json_extract(i.body, '$.repeats') AS repeats, json_extract(i.body, '$.gold.expect') AS expected,
    json_extract(v.body, '$.reviewer') AS reviewer, json_extract(v.body, '$.choice') AS choice,
    CASE json_extract(v.body, '$.choice') WHEN 'a' THEN 'a' WHEN 'b' THEN 'b' WHEN 'tie' THEN 'tie'
        WHEN 'both_bad' THEN 'tie' END AS label,
    json_extract(v.body, '$.shown') AS shown, json_extract(v.body, '$.confidence') AS confidence,
    json_extract(v.body, '$.reason') AS reason, json_extract(v.body, '$.blind') AS blind,
    json_extract(v.body, '$.imported') AS imported, json_extract(v.body, '$.time') AS time,
    json_extract(v.body, '$.duration_s') AS duration_s, w.id IS NULL AS holds
FROM store.ledger v
LEFT JOIN store.ledger i ON i.id = json_extract(v.body, '$.item_id')
LEFT JOIN store.ledger w ON w.tag = 'withdrawal' AND w.tag <> 'judgment' AND w.subject = v.subject
    AND json_extract(w.body, '$.withdraws') = v.id
WHERE v.tag = 'vote' AND v.tag <> 'judgment';

CREATE TEMP VIEW overrides AS
SELECT o.id AS override_id, o.seq, o.subject AS pair_id, json_extract(o.body, '$.label') AS label,
    json_extract(o.body, '$.author') AS author, json_extract(o.body, '$.reason') AS reason,
    json_extract(o.body, '$.blind') AS blind, json_extract(o.body, '$.time') AS time,
    json_array_length(o.body, '$.votes') AS n_votes, json_array_length(o.body, '$.settles') AS n_settled,
    w.id IS NULL AND NOT EXISTS (
        SELECT 1 FROM store.ledger n WHERE n.subject = o.subject AND n.tag = 'override' AND n.seq > o.seq
        AND NOT EXISTS (SELECT 1 FROM store.ledger x WHERE x.subject = n.subject AND x.tag = 'withdrawal'
            AND json_extract(x.body, '$.withdraws') = n.id)) AS holds
FROM store.ledger o
LEFT JOIN store.ledger w ON w.tag = 'withdrawal' AND w.subject = o.subject
    AND json_extract(w.body, '$.withdraws') = o.id
WHERE o.tag = 'override' AND o.tag <> 'judgment';

CREATE TEMP TABLE principles (
    position INTEGER, principle_id TEXT, title TEXT, weight REAL, judged_by TEXT, domains TEXT,
    compare TEXT, critique TEXT, revision TEXT, line TEXT
);
CREATE TEMP TABLE sessions (
    session INTEGER, ended TEXT, seconds REAL, made INTEGER, reused INTEGER, prompt_tokens INTEGER,
    completion_tokens INTEGER
);
CREATE TEMP TABLE pairs (
    pair_id TEXT PRIMARY KEY, phase TEXT, prompt_id TEXT, prompt_source_id TEXT, domain TEXT, prompt TEXT,
    source TEXT, a_id TEXT, b_id TEXT, a TEXT, b TEXT, words_a INTEGER, words_b INTEGER,
    list_a INTEGER, list_b INTEGER, author_a TEXT, author_b TEXT, stratum TEXT,
    state TEXT, filtered_by TEXT, label TEXT, p_a REAL, p_tie REAL, confidence REAL, label_source TEXT,
    override_id TEXT, judge_label TEXT, judge_p_a REAL, n_voting INTEGER, n_abstaining INTEGER,
    chosen_arm TEXT, line INTEGER
);
CREATE TEMP TABLE votes (
    pair_id TEXT, principle_id TEXT, weight REAL, stand TEXT, p_a REAL, label TEXT
);
CREATE TEMP TABLE recalibrated (
    curve TEXT, shown_on TEXT, n_items INTEGER, brier REAL, brier_low REAL, brier_high REAL, log_loss REAL, ece REAL,
    n_bins INTEGER, from_p REAL, to_p REAL, n INTEGER, said REAL, came_true REAL, note TEXT
);
"""


@dataclass(frozen=True, slots=True)
class Table:
    """A query's answer."""

    columns: list[str]
    rows: list[tuple[Any, ...]]

    def dicts(self) -> Iterator[dict[str, Any]]:
        """Yield the rows by column name."""
        for row in self.rows:
            yield dict(zip(self.columns, row, strict=True))


class Views:
    """A run as SQL tables. Queries can only read."""

    def __init__(self, run: RunView | str | Path) -> None:
        self._owns_run = not isinstance(run, RunView)
        self.run = run if isinstance(run, RunView) else RunView(run)
        self._connection = sqlite3.connect(":memory:", uri=True, check_same_thread=False, isolation_level=None)
        # The store's own version and reading checks speak first.
        assert self.run.connection is not None
        path = (self.run.folder / "store.sqlite").resolve()
        self._connection.execute("ATTACH DATABASE ? AS store", (f"{path.as_uri()}?mode=ro",))
        self._connection.executescript(_SQL)
        self._functions()
        self._fill_small()
        self._has_pairs = self._has_curves = False

    def close(self) -> None:
        """Forget the tables, and close the run if it was opened here."""
        self._connection.close()
        if self._owns_run:
            self.run.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def query(self, sql: str, parameters: Sequence[Any] | dict[str, Any] = (), *, limit: int | None = None) -> Table:
        """Return the rows of one SELECT, at most `limit`. Raises UserError for what SQLite refuses, or what writes."""
        named = {name.lower() for name in re.findall(r"(?<!_)\b\w+\b", sql)}
        if not self._has_pairs and named & {"pairs", "votes"}:
            self.fold()
        if "recalibrated" in named and not self._has_curves:
            self._recalibrate()
        ends = time.monotonic() + LIMIT_S
        self._connection.set_progress_handler(lambda: time.monotonic() > ends, 100_000)
        self._connection.set_authorizer(_only_reading)
        try:
            cursor = self._connection.execute(sql, parameters)
            if cursor.description is None:
                raise ValueError("found no SELECT")
            rows = cursor.fetchall() if limit is None else cursor.fetchmany(limit)
            columns = [d[0] for d in cursor.description]
        except (sqlite3.Error, sqlite3.Warning, ValueError) as error:
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
                raise UserError(f"query: took longer than {LIMIT_S:g} s and was stopped; ask for less") from None
            raise UserError(
                f"query: {error}; one SELECT over {', '.join(VIEWS)} is expected (`cai audit query RUN --list`)"
            ) from None
        finally:
            self._connection.set_authorizer(None)
            self._connection.set_progress_handler(None, 0)
        return Table(columns, rows)

    def attach(self, other: Views) -> None:
        """Take a second run's pairs and votes in as `other_pairs` and `other_votes`."""
        for name in ("pairs", "votes"):
            found = other.query(f"SELECT * FROM {name}")
            columns = ", ".join(found.columns)
            self._connection.execute(f"CREATE TEMP TABLE other_{name} ({columns})")
            marks = ", ".join("?" * len(found.columns))
            self._connection.executemany(f"INSERT INTO temp.other_{name} VALUES ({marks})", found.rows)

    def columns(self, name: str) -> list[str]:
        """Return the columns of a view."""
        return [row[1] for row in self._connection.execute(f"PRAGMA table_info({name})")]

    def _functions(self) -> None:
        define = self._connection.create_function
        define("chain_hash", 3, lambda before, tag, body: canon.chain(before or canon.GENESIS, tag, body.encode()))
        define("record_id", 2, _record_id)
        define("bytes_id", 1, lambda text: None if text is None else canon.id_of_bytes(text.encode()))
        define("injection", 1, lambda text: any(signs(text[:_MOST_LOOKED_AT])) if text else False)
        define("canary_letter", 1, self._canary_letter)
        define("wilson_low", 2, lambda hits, n: _end_of(hits, n, 0))
        define("wilson_high", 2, lambda hits, n: _end_of(hits, n, 1))
        define("normal", 1, lambda text: " ".join(re.findall(r"\w+", (text or "").lower())))

    def _fill_small(self) -> None:
        constitution, bench = self.run.constitution, self.run.bench
        self._insert("present", [(bench.question(p).id,) for p in constitution.principles])
        for position, p in enumerate(constitution.principles, 1):
            domains = ",".join(p.domains) if p.domains else None
            judged_by = "judge" if p.check is None else "code"
            self._insert(
                "principles",
                [(position, p.id, p.title, p.weight, judged_by, domains, p.compare, p.critique, p.revision,
                  constitution.line_of(p.id))],
            )  # fmt: skip
        names = ("ended", "seconds", "made", "reused", "prompt_tokens", "completion_tokens")
        for number, session in enumerate(self.run.manifest["sessions"], 1):
            self._insert("sessions", [(number, *(session.get(name) for name in names))])

    def fold(self, each: Callable[[Ended, Look], None] = lambda *_: None) -> None:
        """Work out `pairs` and `votes`, and call `each` with every comparison and how it looks on the way."""
        self._has_pairs = True
        lines, strata = _lines(self.run), Strata()
        authors = dict(self._connection.execute("SELECT key, model FROM store.calls WHERE kind = 'generate'"))
        ended = (end for phase in self.run.phases for end in self.run.ended(phase))
        while some := list(islice(ended, _PAIRS_AT_ONCE)):
            looks = [Look.at(end, authors) for end in some]
            for end, look in zip(some, looks, strict=True):
                each(end, look)
                strata.add(end)
            self._insert("pairs", [_pair_row(self.run, e, k, lines) for e, k in zip(some, looks, strict=True)])
            self._insert("votes", [_vote_row(end, vote) for end in some for vote in end.settled.votes])
        # A comparison's stratum is known when all are.
        named = ((name, id_) for id_, name in strata.named())
        self._connection.executemany("UPDATE pairs SET stratum = ? WHERE pair_id = ?", named)

    def _canary_letter(self, request: str) -> str | None:
        """Return the letter that a request gives away, or None of one that is no canary."""
        messages = canon.loads(request).get("messages") or []
        return self._canaries.get(messages[-2][1]) if len(messages) > 1 else None

    @cached_property
    def _canaries(self) -> dict[str, str]:
        ask = self.run.templates["canary"]
        return {ask.turns(only=("user_principle",), letter=letter)[0].text_id: letter for letter in OPTIONS}

    def _recalibrate(self) -> None:
        """Work out `recalibrated`: what people said of the estimate queue against the judge's probabilities."""
        from cai.assay.reliability import N_BINS, measure_points

        self._has_curves = True
        found = self.query(
            "SELECT p.prompt_id, p.judge_p_a, r.label = 'a' "
            f"FROM reviews r JOIN pairs p USING (pair_id) WHERE {MEASURED}"
        )
        told = measure_points(found.rows, seed=self.run.config.run.seed)
        if told is None:
            return
        curves = [("as it is", "all prompts", told["errors"], told["bins"])]
        curves += [(c["name"], "other prompts", c["errors"], c["bins"] or [None]) for c in told["recalibrated"]]
        rows = []
        for name, shown_on, errors, bins in curves:
            brier, log_loss = errors["brier"], errors["log_loss"]
            for held in bins:
                place = [held[key] for key in ("low", "high", "n", "said", "came_true")] if held else [None] * 5
                rows.append((name, shown_on, errors["n"], brier["value"], brier["low"], brier["high"],
                             log_loss["value"], errors["ece"], N_BINS, *place, told["why_not"]))  # fmt: skip
        self._insert("recalibrated", rows)

    def _insert(self, table: str, rows: Sequence[Sequence[Any]]) -> None:
        if rows:
            marks = ",".join("?" * len(rows[0]))
            self._connection.executemany(f"INSERT INTO temp.{table} VALUES ({marks})", rows)


class Look(NamedTuple):
    """What a comparison's answers look like from outside, arm a first."""

    words: tuple[int, int]
    lists: tuple[bool, bool]
    """Whether it has a list."""
    authors: tuple[str | None, str | None]
    """The models that wrote them; None where the call is not in the store."""

    @classmethod
    def at(cls, end: Ended, authors: Mapping[str, str]) -> Look:
        """Return how a comparison's answers look; `authors` names the model of every call that wrote text."""
        a, b = end.arms
        return cls(
            (checks.count_words(a.text), checks.count_words(b.text)),
            (_LIST.search(a.text) is not None, _LIST.search(b.text) is not None),
            (authors.get(a.call_key), authors.get(b.call_key)),
        )


def _vote_row(end: Ended, vote: Vote) -> tuple[Any, ...]:
    label = None
    if vote.stand == "votes" and vote.p_a is not None:
        label = "tie" if vote.is_tie else "a" if vote.p_a > 0.5 else "b"
    return end.comparison.id, vote.principle_id, vote.weight, vote.stand, vote.p_a, label


def _pair_row(run: RunView, end: Ended, look: Look, lines: dict[str, int]) -> tuple[Any, ...]:
    a, b = end.arms
    held, pair = end.settled, end.admission.pair
    judge = held if held.label_source == "judge" else _judge_alone(run, end)
    voting = sum(v.stand == "votes" for v in held.votes)
    chosen = None if pair is None else "b" if held.label == "b" else "a"
    return (
        end.comparison.id, end.comparison.phase, end.prompt.id, end.prompt.source_id, end.prompt.domain,
        end.prompt.messages[-1].content, end.comparison.source, a.id, b.id, a.text, b.text,
        *look.words, *look.lists, *look.authors, None,
        end.admission.state, end.admission.reason, held.label, held.p_a, held.p_tie, held.confidence,
        held.label_source, held.override_id, judge.label, judge.p_a, voting,
        sum(v.stand == "abstains" for v in held.votes), chosen, lines.get(end.comparison.id),
    )  # fmt: skip


def _judge_alone(run: RunView, end: Ended) -> Any:
    rules = run.config.judge
    kept = [d for d in end.decisions if not isinstance(d, Override)]
    due = run.due(end.comparison, end.prompt.domain)
    return settle(end.comparison.id, kept, due, on_disagreement=rules.on_disagreement, tie_margin=rules.tie_margin)


def _lines(run: RunView) -> dict[str, int]:
    """Return the line of each pair in the run's pairs.jsonl, as its provenance tells."""
    path = provenance_path(run.folder / "pairs.jsonl")
    if not path.exists():
        return {}
    rows = (canon.loads(line) for line in path.read_bytes().splitlines())
    return {row["pair_id"]: row["line"] for row in rows}


def _end_of(hits: int | None, n: int | None, which: int) -> float | None:
    """Return one end of the 95 % Wilson interval of hits among n; None of nothing."""
    interval = wilson(hits or 0, n or 0)
    return interval[which] if interval else None


def _record_id(tag: str, body: str) -> str | None:
    try:
        return str(parse(tag, body).id)
    except (KeyError, ValueError):
        return None


_READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def _only_reading(action: int, first: str | None, second: str | None, *_: Any) -> int:
    """Allow reading only; functions that touch files are refused."""
    if action == sqlite3.SQLITE_FUNCTION and second in ("load_extension", "readfile", "writefile", "edit"):
        return sqlite3.SQLITE_DENY
    return sqlite3.SQLITE_OK if action in _READING else sqlite3.SQLITE_DENY
