"""One decision to the last byte: the prompt as it was sent, the reply as it came, and its place in the chain."""

from __future__ import annotations

from typing import Any

from cai.records import Judgment
from cai.trail import RunView
from cai.view.page import Ask, NotFound, is_id, run_path
from cai.view.words import leaning, verdict


def collect(ask: Ask) -> dict[str, Any]:
    """Return everything kept about one judgment. Raises NotFound."""
    run, id_ = ask.run, ask.params["id"]
    view, _ = run.followed()
    judgment = view.record(id_) if is_id(id_) else None
    if not isinstance(judgment, Judgment):
        raise NotFound(f"'{id_}' is no judgment of this run")
    seq, hash_ = view.connection.execute("SELECT seq, hash FROM ledger WHERE id = ?", (id_,)).fetchone()
    run.show_to(ask.visitor.name, [judgment.comparison_id])
    comparison = view.record(judgment.comparison_id)
    question = view.questions.get(judgment.question_id)
    source = comparison.source if comparison else None
    principle = view.constitution.by_id.get(question.principle_id) if question else None
    return {
        "run": run.name,
        "id": id_,
        "record": judgment.model_dump(mode="json"),
        "verdict_words": verdict(judgment.verdict, source),
        "leaning": leaning(judgment.p_a, source),
        "trail_href": run_path(run.name, "trail", judgment.comparison_id) + f"#d{seq}",
        "principle": {
            "id": question.principle_id if question else None,
            "title": principle.title if principle else None,
            "line": view.constitution.line_of(principle.id).rpartition("/")[2] if principle else None,
        },
        "question": question.model_dump(mode="json") if question else None,
        "ledger": {"seq": seq, "hash": hash_},
        "call": _call(view, judgment.call_key),
        "parts": [part.model_dump(mode="json") | {"call": _call(view, part.call_key)} for part in judgment.parts],
    }


def _call(view: RunView, key: str | None) -> dict[str, Any] | None:
    """Return the request with its texts in place, the reply, and how it came; None where code decided."""
    found = view.call(key) if key else None
    if found is None:
        return None
    request, reply = found
    made_at, kind = view.connection.execute("SELECT made_at, kind FROM calls WHERE key = ?", (key,)).fetchone()
    return {
        "key": key,
        "kind": kind,
        "made_at": made_at,
        "model": request["model"],
        "messages": request["messages"],
        "settings": {name: value for name, value in request.items() if name not in ("messages", "model", "kind")},
        "reply": reply.content(),
        "circumstances": reply.circumstances(),
    }
