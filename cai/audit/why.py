"""why: everything behind one pair, decision, training row or checkpoint, up to the line of the constitution."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from cai import canon
from cai.audit import find
from cai.errors import UserError
from cai.pairs import provenance_path, sft_rows, stale_checkpoints
from cai.records import PEOPLE, Critique, Event, Judgment, Override, Prompt, Question, Response, Revision, parse
from cai.trail import Ended, RunView

_ID = re.compile(r"^(b2:)?[0-9a-f]+$")
_LINE = re.compile(r"^(?P<file>.+\.jsonl):(?P<line>\d+)$")


def why(run: RunView, what: str) -> dict[str, Any]:
    """Return the trail of `what`, as JSON can say it: `kind` is `pair`, `answer` or `checkpoint`.

    `what` is the beginning of a pair's, decision's, vote's or answer's id (SFT rows have an answer's), a line such as
    `pairs.jsonl:17`, or a checkpoint's folder or phase. Raises UserError where it names nothing, or several things.
    """
    line = _LINE.match(what)
    if line:
        return of_pair(run, _pair_of_line(run, line["file"], int(line["line"])))
    phase = _phase_of(run, what)
    if phase is not None:
        return of_checkpoint(run, phase)
    if not _ID.match(what):
        trained = ", ".join(_with_checkpoint(run)) or "none"
        raise UserError(
            f"'{what}': expected an id or its first digits (b2:0a1b…), a line such as pairs.jsonl:17, or a checkpoint; "
            f"checkpoints of {run.folder}: {trained}"
        )
    tag, id_ = find.one(run, what)
    if tag == "comparison":
        return of_pair(run, id_)
    if tag in ("judgment", "override", "vote", "withdrawal", "reveal", "review_item"):
        event: Event = run.record(id_)
        return of_pair(run, event.subject, decision=id_)
    if tag in ("response", "revision"):
        return of_answer(run, run.record(id_))
    raise UserError(f"'{what}' is a {tag}; give a pair, a decision, a line of pairs.jsonl or a checkpoint")


def _pair_of_line(run: RunView, file: str, line: int) -> str:
    path = Path(file) if Path(file).exists() else run.folder / Path(file).name
    if not path.exists():
        raise UserError(f"{path}: no such file; `cai pairs {run.folder}` writes the run's pairs")
    origins = provenance_path(path)
    if not origins.exists():
        raise UserError(
            f"{origins}: the provenance that belongs to {path.name} is missing; write both with `cai pairs`"
        )
    rows = origins.read_bytes().splitlines()
    if not 1 <= line <= len(rows):
        raise UserError(f"{path}:{line}: the file has {len(rows)} rows; give one of 1 to {len(rows)}")
    return str(canon.loads(rows[line - 1])["pair_id"])


def _phase_of(run: RunView, what: str) -> str | None:
    """Return the phase whose checkpoint `what` names, or None."""
    name = Path(what).name
    if name in ("model", "adapter"):
        name = Path(what).parent.name
    return name if name in _with_checkpoint(run) else None


def _with_checkpoint(run: RunView) -> list[str]:
    return [phase for phase, entry in run.manifest["phases"].items() if "train" in entry]


# -- a pair ----------------------------------------------------------------------------------------------------------


def of_pair(run: RunView, comparison_id: str, decision: str | None = None) -> dict[str, Any]:
    """Return the trail of one comparison; `decision` marks the decision that was asked about."""
    end = _ended(run, comparison_id)
    arms = {name: _arm(run, record) for name, record in zip("ab", end.arms, strict=True)}
    counted = end.settled.judgment_ids
    texts = {q.text_id: p.id for p in run.constitution.principles for q in [run.bench.question(p)]}
    return {
        "kind": "pair",
        "run": str(run.folder),
        "pair_id": comparison_id,
        "asked_about": decision,
        "phase": end.comparison.phase,
        "source": end.comparison.source,
        "prompt": _prompt(end.prompt),
        "arms": arms,
        "decisions": [
            _judgment(run, d, texts) | {"counts": d.id in counted} | ({"asked_about": True} if d.id == decision else {})
            for d in end.decisions
            if isinstance(d, Judgment)
        ],
        "votes": [v._asdict() for v in end.settled.votes],
        "fold": {
            "rule": f"mean of both orders per principle; orders that differ: {run.config.judge.on_disagreement}; "
            f"weighted mean over the principles that vote; tie within {run.config.judge.tie_margin:g} of one half; "
            "the latest override holds",
            "state": end.admission.state,
            "filtered_by": end.admission.reason,
            "label": end.settled.label,
            "p_a": end.settled.p_a,
            "p_tie": end.settled.p_tie,
            "confidence": end.settled.confidence,
            "label_source": end.settled.label_source,
            "override_id": end.settled.override_id,
        },
        "overrides": [_event(d) for d in end.decisions if isinstance(d, Override)],
        "reviews": _reviews(run, comparison_id),
        "row": None if end.admission.pair is None else _row(run, end),
        "trained": _trained(run, end),
    }


def _ended(run: RunView, comparison_id: str) -> Ended:
    row = run.connection.execute("SELECT phase, prompt_id FROM records WHERE id = ?", (comparison_id,)).fetchone()
    if row is None:
        raise UserError(
            f"'{comparison_id}' is no pair of {run.folder} (a gold item, perhaps); nothing stands behind it"
        )
    side = "held_out" if row[0].startswith("evaluate") else "train"
    for end in run.ended(row[0], side=side):
        if end.comparison.id == comparison_id:
            return end
    raise UserError(f"'{comparison_id}' belongs to a walk that was done anew ('{row[0]}'); it is in no training row")


def _prompt(prompt: Prompt) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "source_id": prompt.source_id,
        "domain": prompt.domain,
        "messages": [m.model_dump() for m in prompt.messages],
    }


def _arm(run: RunView, record: Response | Revision) -> dict[str, Any]:
    """Return an answer and, for a revision, the critiques and answers it came from, the last first."""
    told: dict[str, Any] = {
        "kind": record.tag,
        "id": record.id,
        "text": record.text,
        "finish_reason": record.finish_reason,
        "call": call(run, record.call_key),
    }
    if isinstance(record, Revision):
        critique: Critique = run.record(record.critique_id)
        told["critique"] = {
            "id": critique.id,
            "round": critique.round,
            "principle": principle(run, critique.principle_id, "critique"),
            "text": critique.text,
            "passed": critique.passed,
            "call": call(run, critique.call_key),
        }
        told["revised_from"] = _arm(run, run.record(record.answer_id))
    return told


def principle(run: RunView, principle_id: str, part: str) -> dict[str, Any]:
    """Return a principle with the line of the constitution that holds the part used."""
    known = {p.id: p for p in run.constitution.principles}
    if principle_id not in known:
        return {"id": principle_id, "line": None, "note": "no longer in the run's constitution"}
    p = known[principle_id]
    text = getattr(p, part, None)
    return {
        "id": p.id,
        "title": p.title,
        "weight": p.weight,
        "line": run.constitution.line_of(p.id, part),
        "text": text if isinstance(text, str) or text is None else text.model_dump(exclude_none=True),
    }


def call(run: RunView, key: str | None) -> dict[str, Any] | None:
    """Return a call byte for byte: what was asked, what came back, and how; None where code decided."""
    found = run.call(key) if key else None
    if key is None or found is None:
        return None if key is None else {"key": key, "missing": True}
    request, reply = found
    made_at = run.connection.execute("SELECT made_at, reply_id FROM calls WHERE key = ?", (key,)).fetchone()
    return {
        "key": key,
        "reply_id": made_at[1],
        "request": request,
        "reply": reply.content(),
        "circumstances": reply.circumstances(),
        "made_at": made_at[0],
    }


def _judgment(run: RunView, judgment: Judgment, current: dict[str, str]) -> dict[str, Any]:
    """Return a judgment with its question, its principle and every call it was read from."""
    question: Question | None = run.questions.get(judgment.question_id)
    part = "check" if question and question.mode == "check" else "compare"
    told = _event(judgment)
    if question is not None:
        told["question"] = question.model_dump()
        told["principle"] = principle(run, question.principle_id, part)
        if question.text_id not in current:
            told["principle"]["note"] = "the text has changed since; the call holds it as it was asked"
    told["call"] = call(run, judgment.call_key)
    for part in told["parts"]:
        part["call"] = call(run, part["call_key"])
    return told


def _event(event: Event) -> dict[str, Any]:
    return {"id": event.id, "tag": event.tag} | event.model_dump(mode="json")


def _reviews(run: RunView, comparison_id: str) -> list[dict[str, Any]]:
    """Return every review event of a comparison in order, withdrawals included."""
    rows = run.connection.execute(
        "SELECT tag, body FROM ledger WHERE subject = ? AND tag IN ('review_item', 'vote', 'reveal', 'withdrawal') "
        "ORDER BY seq",
        (comparison_id,),
    )
    return [_event(parse(tag, body)) for tag, body in rows]


def _row(run: RunView, end: Ended) -> dict[str, Any]:
    """Return where the pair stands in the run's pairs file, and which answer it chose."""
    path = provenance_path(run.folder / "pairs.jsonl")
    line = None
    if path.exists():
        for kept in path.read_bytes().splitlines():
            row = canon.loads(kept)
            line = row["line"] if row["pair_id"] == end.comparison.id else line
    assert end.admission.pair is not None
    chosen = "b" if end.settled.label == "b" else "a"
    return {"file": "pairs.jsonl", "line": line, "chosen_arm": chosen, "p_chosen": end.admission.pair.p_chosen}


def _trained(run: RunView, end: Ended) -> list[dict[str, Any]]:
    """Return the checkpoints whose rows come from this pair's phase."""
    entry = run.manifest["phases"].get(end.comparison.phase, {})
    if "train" not in entry or entry["train"]["method"] == "sft" or end.admission.pair is None:
        return []
    return [_checkpoint(run, end.comparison.phase)]


# -- an answer -------------------------------------------------------------------------------------------------------


def of_answer(run: RunView, record: Response | Revision) -> dict[str, Any]:
    """Return the trail of one answer, such as an SFT row is made of: its call, and the critiques behind it."""
    phase, prompt_id = run.connection.execute(
        "SELECT phase, prompt_id FROM records WHERE id = ?", (record.id,)
    ).fetchone()
    method = (run.manifest["phases"].get(phase, {}).get("train") or {}).get("method")
    is_row = method == "sft" and any(row["id"] == record.id for row in sft_rows(run, phase))
    return {
        "kind": "answer",
        "run": str(run.folder),
        "phase": phase,
        "prompt": _prompt(run.record(prompt_id)),
        "answer": _arm(run, record),
        "trained": [_checkpoint(run, phase)] if is_row else [],
    }


# -- a checkpoint ----------------------------------------------------------------------------------------------------


def _checkpoint(run: RunView, phase: str) -> dict[str, Any]:
    entry = run.manifest["phases"][phase]["train"]
    folder = run.folder / "checkpoints" / phase
    is_stale = str(folder) in stale_checkpoints(run)
    return {"phase": phase, "folder": str(folder), "method": entry["method"], "is_stale": is_stale}


def of_checkpoint(run: RunView, phase: str) -> dict[str, Any]:
    """Return what a checkpoint was trained on and from: its rows by pair, and the policy that gave the answers."""
    entry = run.manifest["phases"][phase]["train"]
    origins = provenance_path(run.folder / "pairs.jsonl")
    rows = [canon.loads(line) for line in origins.read_bytes().splitlines()] if origins.exists() else []
    mine = [r for r in rows if r["phase"] == phase]
    if entry["method"] == "sft":
        mine = [{"line": n, "answer_id": row["id"]} for n, row in enumerate(sft_rows(run, phase), 1)]
    manifest_path = run.folder / "checkpoints" / phase / "checkpoint.json"
    return {
        "kind": "checkpoint",
        "run": str(run.folder),
        **_checkpoint(run, phase),
        "rows_id": entry.get("rows_id"),
        "n_rows": entry.get("n_rows"),
        "base": entry.get("base"),
        "manifest": json.loads(manifest_path.read_text(encoding="utf-8")) if manifest_path.exists() else None,
        "constitution": run.manifest["constitution"],
        "policies": run.manifest.get("policies") or [],
        "accounting": run.accounting(phase).as_dict(),
        "by_people": sum(r.get("label_source") in PEOPLE for r in mine),
        "rows": mine,
    }
