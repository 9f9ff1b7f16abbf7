"""One run: how far it is, how fast, what failed, where its comparisons ended, and what it trained."""

from __future__ import annotations

import time
from collections import Counter
from typing import Any

from cai.report.collect import read_curve
from cai.trail import RunView, progress
from cai.view.page import Ask
from cai.view.site import Reckoning, Run, identity

_WINDOW_S = 60.0
"""Rates are those of the last minute."""
_LEAST_S = 1.0
_MOST_CALLS = 20_000
"""So many of the newest calls are looked at for the rates."""


def collect(ask: Ask) -> dict[str, Any]:
    """Return the state of a run; it may be at work meanwhile."""
    run = ask.run
    view, state = run.view, run.state
    manifest = view.manifest
    begun = run.has_begun
    counted = run.reckoning() if begun else None
    return {
        "name": run.name,
        "state": state,
        "is_live": state == "at work",
        "created": manifest["created"],
        "finished": manifest["done"]["time"] if manifest["done"] else None,
        "constitution": manifest.get("constitution") or None,
        "models": {role: identity(text) for role, text in (view.models if manifest.get("models") else {}).items()},
        "judge_mode": view.config.judge.mode,
        "seed": view.config.run.seed,
        "prompts": manifest.get("prompts"),
        "progress": _progress(view) if begun else None,
        "rates": _rates(view, state == "at work") if begun else None,
        "has_counted": counted is not None,
        "accounting": counted.accounting if counted else None,
        "judge": _judge(counted),
        "phases": _phases(run, view),
        "stale": manifest["done"]["result"].get("stale", []) if manifest["done"] else [],
        "changes": manifest["changes"],
        "sessions": manifest["sessions"],
        "has_report": (run.folder / "report.html").is_file(),
    }


def _progress(view: RunView) -> dict[str, Any]:
    """Return what `cai status` tells, and the failures by reason."""
    told = progress(view)
    rows = view.connection.execute("SELECT phase, prompt_id, detail FROM walks WHERE state = 'failed'").fetchall()
    reasons = Counter(detail or "no reason was kept" for _, _, detail in rows)
    begun = {walk["phase"] for walk in told["walks"]}
    due = (view.manifest.get("prompts") or {}).get("train", 0)
    order = [*view.phases, "evaluate/before", "evaluate/after", "evaluate"]
    waiting = [{"phase": p, "done": 0, "failed": 0, "due": due} for p in view.phases if p not in begun]
    return {
        "walks": sorted(told["walks"] + waiting, key=lambda w: order.index(w["phase"]) if w["phase"] in order else 99),
        "calls": told["calls"],
        "ledger": told["ledger"],
        "n_failed": len(rows),
        "failures": [{"reason": reason, "n": n} for reason, n in reasons.most_common(10)],
        "failed_prompts": told["failures"],
    }


def _rates(view: RunView, is_live: bool) -> dict[str, Any]:
    """Return calls and tokens of the last minute of work: up to now, or up to the last call of a run at rest."""
    # Newest rows first and no further than the minute: `calls` has no index on time, and needs none for this.
    rows = view.connection.execute(
        "SELECT made_at, kind, coalesce(json_extract(reply, '$.n_completion'), 0), "
        "coalesce(json_extract(reply, '$.n_prompt'), 0) FROM calls ORDER BY rowid DESC LIMIT ?",
        (_MOST_CALLS,),
    )
    end, start = time.time() if is_live else None, None
    n, written, read, kinds = 0, 0, 0, Counter()
    for made_at, kind, n_completion, n_prompt in rows:
        end = made_at if end is None else end
        if made_at > end:  # the clock has been set back since
            continue
        if made_at < end - _WINDOW_S:
            break
        n, written, read, start = n + 1, written + n_completion, read + n_prompt, made_at
        kinds[kind] += 1
    seconds = max(_LEAST_S, (end or 0) - (start or 0)) if n else _WINDOW_S
    return {
        "window_s": round(min(_WINDOW_S, seconds), 1),
        "calls_per_s": n / seconds,
        "written_tokens_per_s": written / seconds,
        "read_tokens_per_s": read / seconds,
        "by_kind": dict(kinds),
    }


def _judge(counted: Reckoning | None) -> dict[str, Any] | None:
    """Return how far the judge agrees with itself, over all phases."""
    if counted is None:
        return None
    tally = counted.judge
    return (
        {
            "consistency": tally.consistency,
            "n": tally.both_orders,
            "judgments": tally.judgments,
            "unusable": sum(tally.unusable.values()),
        }
        if tally.judgments
        else None
    )


def _phases(run: Run, view: RunView) -> list[dict[str, Any]]:
    told = []
    for name in view.phases:
        entry = view.manifest["phases"][name]
        trained = entry.get("train") or {}
        section = next((p for p in view.config.phases if name in (p.name, f"{p.name}-{name.rpartition('-')[2]}")), None)
        told.append(
            {
                "name": name,
                "state": entry.get("state"),
                "compares": list(section.pairs) if section else [],
                "trains": section.train if section else None,
                "n_rows": trained.get("n_rows"),
                "wall_s": trained.get("wall_s"),
                "curve": read_curve(run.folder / "checkpoints" / name / "curve.jsonl"),
            }
        )
    return told
