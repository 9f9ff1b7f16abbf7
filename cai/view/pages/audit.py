"""The judge's habits in figures: what it favours, how sure it is, and what it left undecided."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

from cai.audit.effects import FAMILY, OWN
from cai.audit.summary import MOST_TOLD
from cai.view.index import LOW_MARGIN
from cai.view.page import Ask, run_path
from cai.view.plots import histogram, share_rows
from cai.view.site import Reckoning, Run

_BINS = 20
_EFFECTS = {
    "first shown": "that is shown first",
    "longer": "that is longer",
    "with a list": "that has a list",
    OWN: "of the judge's own model",
    FAMILY: "of the judge's model family",
    "revision": "that is the revision",
}
"""How the summary's effects read after ‘the judge picks the answer’."""


def collect(ask: Ask) -> dict[str, Any]:
    """Return counts over all of a run's judgments and the figures made of them; everything leads to its decisions."""
    run = ask.run
    _, n_ledger = run.followed()
    counted = run.reckoning()
    by_judge = "kind = 'judgment' AND mode <> 'check'"
    return {
        "run": run.name,
        "n_ledger": n_ledger,
        "has_counted": counted is not None,
        "low_margin": LOW_MARGIN,
        "counts": _counts(run, by_judge),
        "summary": _told(run.summary()),
        "habits": _habits(counted, run.view.constitution.by_id),
        "weaknesses": _weaknesses(counted),
        "probabilities": {order: _probabilities(run, order) for order in ("ab", "ba")},
        "verdicts": _verdicts(run),
        "unusable": run.index.query(
            "SELECT coalesce(reason, verdict) AS reason, count(*) AS n FROM decisions "
            "WHERE kind = 'judgment' AND p_a IS NULL GROUP BY 1 ORDER BY 2 DESC"
        ),
        "phases": [{"name": p["name"], "side": p["side"], "accounting": p["counted"].as_dict()} for p in counted.phases]
        if counted
        else [],
    }


def _told(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the audit's summary adds: effects over all principles, position, cost, texts, flags, retries."""
    if found is None:
        return None
    named = (
        "effects",
        "position",
        "flags",
        "cost",
        "texts",
        "retried",
        "low_margin",
        "low_margin_decisions",
        "critiques_contradicted",
        "canaries",
    )
    told = {name: found[name] for name in named} | {"most_told": MOST_TOLD}
    effects = [
        {"title": f"the answer {_EFFECTS.get(row['picks the answer'], row['picks the answer'])}", "phase": "", **row}
        for row in found["effects"]
        if row["n"]
    ]
    return told | {"figure": share_rows(effects, 0.5) if effects else None}


def _counts(run: Run, by_judge: str) -> list[dict[str, Any]]:
    """Return the counts an auditor starts from, each with the address of what it counts."""
    row = run.index.query(
        f"""SELECT count(*) FILTER (WHERE {by_judge}) AS judge, count(*) FILTER (WHERE mode = 'check') AS code,
        count(*) FILTER (WHERE kind = 'override') AS person, count(*) FILTER (WHERE swapped) AS swapped,
        count(*) FILTER (WHERE {by_judge} AND margin < {LOW_MARGIN}) AS narrow,
        count(*) FILTER (WHERE kind = 'judgment' AND p_a IS NULL) AS unusable,
        count(*) FILTER (WHERE flag IS NOT NULL) AS flagged FROM decisions"""
    )[0]
    told = (
        ("judge", "judgments by the model", {"kind": "judge"}),
        ("code", "decisions by code", {"kind": "code"}),
        ("person", "overrides by people", {"kind": "person"}),
        ("swapped", "changed sides when the order was swapped", {"only": "swapped"}),
        ("narrow", f"narrow: within {LOW_MARGIN:g} of one half", {"only": "narrow", "kind": "judge"}),
        ("unusable", "without a usable verdict", {"only": "unusable"}),
        ("flagged", "flagged as an attempt to steer the judge", {"only": "flagged"}),
    )
    base = run_path(run.name, "decisions")
    return [{"name": name, "title": title, "n": row[name], "href": f"{base}?{urlencode(q)}"} for name, title, q in told]


def _habits(counted: Reckoning | None, titles: Any) -> list[dict[str, Any]]:
    """Return, for each habit, the share per principle and phase with its Wilson interval, as a figure."""
    if counted is None:
        return []
    asked = (
        ("consistency", "The two orders agree", 0.5, "a coin reaches 50%"),
        ("picked_first", "It picked the answer shown first", 0.5, "50% shows no favourite position"),
        ("picked_longer", "It picked the longer answer", 0.5, "50% shows no favourite length"),
    )
    told = []
    for name, title, neutral, note in asked:
        rows = [
            {
                "title": titles[t["principle"]].title if t["principle"] in titles else t["principle"],
                "phase": phase["name"],
                **t[name],
            }
            for phase in counted.phases
            for t in phase["judged"]["principles"]
            if t[name]
        ]
        if rows:
            told.append({"name": name, "title": title, "note": note, "rows": rows, "figure": share_rows(rows, neutral)})
    return told


def _weaknesses(counted: Reckoning | None) -> list[str]:
    if counted is None:
        return []
    return list(dict.fromkeys(w for phase in counted.phases for w in phase["judged"]["weaknesses"]))


def _probabilities(run: Run, order: str) -> dict[str, Any]:
    """Return how the model's probabilities for the answer shown first are spread, in bins of 5 %."""
    # What the judge saw first is arm a in order ab and arm b in order ba.
    p_first = "p_a" if order == "ab" else "1 - p_a"
    rows = run.index.query(
        f"SELECT min(CAST(({p_first}) * {_BINS} AS INTEGER), {_BINS - 1}) AS bin, count(*) AS n FROM decisions "
        "WHERE kind = 'judgment' AND mode <> 'check' AND ord = ? AND p_a IS NOT NULL GROUP BY 1",
        (order,),
    )
    counts = [0] * _BINS
    for row in rows:
        counts[row["bin"]] = row["n"]
    return {"counts": counts, "n": sum(counts), "figure": histogram(counts) if any(counts) else None}


def _verdicts(run: Run) -> list[dict[str, Any]]:
    """Return the verdicts by principle and order."""
    rows = run.index.query(
        "SELECT principle, ord, verdict, count(*) AS n FROM decisions WHERE kind = 'judgment' GROUP BY 1, 2, 3"
    )
    told: dict[tuple[str, str], dict[str, Any]] = {}
    for row in rows:
        key = (row["principle"] or "", row["ord"])
        line = told.setdefault(key, {"principle": key[0], "order": key[1], "n": 0, "verdicts": {}})
        line["verdicts"][row["verdict"]] = row["n"]
        line["n"] += row["n"]
    return [told[key] for key in sorted(told)]
