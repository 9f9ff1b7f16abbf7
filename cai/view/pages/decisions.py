"""The decisions of a run: filtered, searched, paged, each state with an address of its own."""

from __future__ import annotations

from typing import Any

from cai.view import words
from cai.view.index import CHOICES, LOW_MARGIN, PAGE, SORTS, Filter
from cai.view.page import Ask, NotFound, run_path
from cai.view.words import MEANING

_LONGEST_QUERY = 200


def collect(ask: Ask) -> dict[str, Any]:
    """Return one page of decisions and what else they can be narrowed to. Raises NotFound for an unknown filter."""
    run = ask.run
    _, n_ledger = run.followed()
    counted = run.reckoning(patience_s=0)
    choices = {
        **{name: list(values) for name, values in CHOICES.items()},
        "phase": run.index.values("phase"),
        "principle": run.index.values("principle"),
        "verdict": run.index.values("verdict"),
        "source": run.index.values("source"),
        "ended": list(MEANING) if counted else [],
    }
    wanted = _filter(ask, choices)
    total, rows = run.index.page(wanted)
    run.show_to(ask.visitor.name, (row["comparison"] for row in rows))
    n_pages = max(1, -(-total // PAGE))
    return {
        "run": run.name,
        "filter": {name: getattr(wanted, name) for name in (*choices, "q")},
        "choices": choices,
        "sorts": {name: title for name, (_, title) in SORTS.items()},
        "low_margin": LOW_MARGIN,
        "has_counted": counted is not None,
        "n_ledger": n_ledger,
        "total": total,
        "page": wanted.page,
        "n_pages": n_pages,
        "first": PAGE * (wanted.page - 1) + 1 if rows else 0,
        "decisions": [_row(run.name, row) for row in rows],
    }


def _filter(ask: Ask, choices: dict[str, list[str]]) -> Filter:
    given = {name: ask.query[name] for name in (*choices, "q") if ask.query.get(name)}
    for name, value in given.items():
        if name != "q" and value not in choices[name]:
            raise NotFound(f"no decision of this run has {name} '{value}'; choose one of {', '.join(choices[name])}")
    page = ask.query.get("page", "1")
    if not (page.isascii() and page.isdecimal() and 1 <= int(page[:9]) and len(page) < 9):
        raise NotFound(f"page '{page}' is no page number")
    if "q" in given:
        # Half a surrogate pair, which a hand-made address can hold, is in no text.
        given["q"] = given["q"].strip()[:_LONGEST_QUERY].encode("utf-8", "replace").decode()
    return Filter(**{name: value for name, value in given.items() if value}, page=int(page))


def _row(run: str, row: dict[str, Any]) -> dict[str, Any]:
    source = row["source"]
    return {
        "seq": row["seq"],
        "id": row["id"],
        "href": run_path(run, "trail", row["comparison"]) + f"#d{row['seq']}",
        "comparison": row["comparison"],
        "phase": row["phase"],
        "source": source,
        "asked": row["asked"],
        "source_id": row["source_id"],
        "principle": row["principle"],
        "by": "person" if row["kind"] == "override" else "code" if row["mode"] == "check" else "judge",
        "mode": row["mode"],
        "order": row["ord"],
        "verdict": row["verdict"],
        "verdict_words": words.verdict(row["verdict"], source),
        "p_a": row["p_a"],
        "leaning": words.leaning(row["p_a"], source),
        "reason": row["reason"],
        "flag": row["flag"],
        "swapped": bool(row["swapped"]),
        "ended": row["state"],
    }
