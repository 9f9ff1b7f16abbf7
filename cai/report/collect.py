"""Everything the page shows, as one JSON-able tree: the run's files in, plain values out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cai import evaluate
from cai.assay.check import sentence
from cai.config import Phase
from cai.evaluate import JudgeCount
from cai.evaluate.conflicts import Conflicts
from cai.manifest import now
from cai.report import examples, words
from cai.report.page import redacted
from cai.stages.admit import Accounting, total
from cai.store import ledger
from cai.trail import RunView, progress

SCHEMA = 1
_MOST_POINTS = 400
"""A training curve is thinned to about so many points."""


def collect(run_dir: str | Path) -> dict[str, Any]:
    """Return everything known about a run; what did not happen is None or empty. Raises UserError without a run."""
    with RunView(run_dir) as run:
        return _collected(run)


def _collected(run: RunView) -> dict[str, Any]:
    begun = (run.folder / "store.sqlite").exists()
    phases = [_phase(run, name) for name in run.phases] if begun else []
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "written": now(),
        "run": _run(run),
        "constitution": _constitution(run),
        "models": {role: redacted(identity) for role, identity in run.models.items()},
        "judge_check": sentence(checked) if (checked := run.manifest.get("judge_check")) else None,
        "policies": [_strings_redacted(policy) for policy in run.manifest.get("policies") or []],
        "prompts": _prompts(run),
        "phases": phases,
        "accounting": _total(phases),
        "progress": progress(run) if begun else None,
        "evaluation": evaluate.measure(run) if begun else None,
        "examples": examples.choose(run) if begun else None,
        "sessions": run.manifest["sessions"],
        "calls": _calls(run) if begun else [],
        "ledger": _ledger(run) if begun else None,
        "changes": run.manifest["changes"],
        "reproduce": _reproduce(run),
    }
    return data | {"headline": words.headline_of(data)}


def _strings_redacted(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: redacted(value) if isinstance(value, str) else value for name, value in tree.items()}


def _run(run: RunView) -> dict[str, Any]:
    done = run.manifest["done"]
    config = run.config
    return {
        "name": run.manifest.get("name") or run.folder.name,
        "folder": config.run.dir,
        "created": run.manifest["created"],
        "done": done["time"] if done else None,
        "exit_code": done["result"]["exit_code"] if done else None,
        "seed": config.run.seed,
        "rounds": config.rounds,
        "config_id": run.manifest["config_id"],
        "cai_version": run.manifest["cai_version"],
        "versions": run.manifest.get("versions") or {},
        "engine": config.engine.kind,
        "judge_mode": config.judge.mode,
        "respond": config.respond.model_dump(),
        "stale": done["result"].get("stale", []) if done else [],
    }


def _constitution(run: RunView) -> dict[str, Any]:
    constitution = run.constitution
    return {
        "name": constitution.name,
        "description": constitution.description,
        "id": constitution.id,
        "path": run.manifest["constitution"].get("path"),
        "principles": [
            {
                "id": p.id,
                "title": p.title,
                "weight": p.weight,
                "domains": list(p.domains) if p.domains else None,
                "decided_by": "judge" if p.check is None else "code",
            }
            for p in constitution.principles
        ],
    }


def _prompts(run: RunView) -> dict[str, int] | None:
    counts = run.manifest.get("prompts")
    if not counts:
        return None
    counts = {"refused": 0} | counts
    used = (
        counts["refused"] + counts["duplicates_folded"] + counts["leaks_dropped"] + counts["train"] + counts["held_out"]
    )
    return counts | {"beyond_limits": counts["read"] - used}


# -- phases --------------------------------------------------------------------------------------------------------


def _phase(run: RunView, name: str) -> dict[str, Any]:
    judged, accounting = JudgeCount(run.questions), Accounting()
    conflicts = Conflicts(run.config.judge.tie_margin)
    for end in run.ended(name):
        judged.add(end)
        conflicts.add(end)
        accounting.count(end.admission)
    rows = run.connection.execute("SELECT tag, count(*) FROM records WHERE phase = ? GROUP BY tag", (name,))
    section = _section(run, name)
    return {
        "name": name,
        "settings": section.model_dump(mode="json") if section else None,
        "records": dict(rows.fetchall()),
        "accounting": accounting.as_dict() if accounting.comparisons else None,
        "judged": judged.as_dict() if accounting.comparisons else None,
        "conflicts": conflicts.as_dict(list(run.constitution.by_id)) if accounting.comparisons else None,
        "training": _training(run, name),
    }


def _section(run: RunView, name: str) -> Phase | None:
    """Return the phase's part of the config; in round 2 the phase `rl` is called `rl-2`."""
    return next((p for p in run.config.phases if name in (p.name, f"{p.name}-{name.rpartition('-')[2]}")), None)


def _total(phases: list[dict[str, Any]]) -> dict[str, Any] | None:
    parts = []
    for counts in (phase["accounting"] for phase in phases if phase["accounting"]):
        part = Accounting(comparisons=counts["comparisons"], rows=counts["rows"])
        part.states.update({k: v for k, v in counts.items() if k not in ("comparisons", "rows", "filtered_by")})
        part.filtered.update(counts["filtered_by"])
        parts.append(part)
    return total(parts).as_dict() if parts else None


def _training(run: RunView, name: str) -> dict[str, Any] | None:
    entry = run.manifest["phases"][name].get("train")
    curve = read_curve(run.folder / "checkpoints" / name / "curve.jsonl")
    if entry is None and not curve:
        return None
    told = {name: (entry or {}).get(name) for name in _OF_TRAINING}
    return {"finished": entry is not None, **told, "curve": curve}


_OF_TRAINING = (
    "method",
    "n_rows",
    "dropped",
    "steps",
    "wall_s",
    "device",
    "dtype",
    "rows_id",
    "weights_id",
    "versions",
    "tripped",
)
"""What the page tells of a checkpoint's manifest."""


def read_curve(path: Path) -> list[dict[str, float]]:
    """Return the rows of a training curve in order of their steps, thinned to a few hundred.

    A line that was torn by a kill is passed over; a step that was trained again after one counts as it was last.
    """
    if not path.exists():
        return []
    by_step = {row["step"]: row for row in _rows(path)}
    points = [by_step[step] for step in sorted(by_step)]
    stride = max(1, -(-len(points) // _MOST_POINTS))
    # Looks at held-out prompts are few and far between: none of them is left out.
    kept = [point for i, point in enumerate(points) if i % stride == 0 or "held_out_kl" in point]
    return kept if not points or kept[-1] is points[-1] else [*kept, points[-1]]


def _rows(path: Path) -> Iterator[dict[str, float]]:
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), (int, float)):
            yield {k: v for k, v in row.items() if isinstance(v, (int, float)) and abs(v) < float("inf")}


# -- what it took and how to do it again -----------------------------------------------------------------------------


def _calls(run: RunView) -> list[dict[str, Any]]:
    """Return how many calls of every kind the store holds, and the tokens they took."""
    rows = run.connection.execute(
        "SELECT kind, count(*), sum(coalesce(json_extract(reply, '$.n_prompt'), 0)), "
        "sum(coalesce(json_extract(reply, '$.n_completion'), 0)) FROM calls GROUP BY kind ORDER BY kind"
    )
    return [dict(zip(("kind", "calls", "prompt_tokens", "completion_tokens"), row, strict=True)) for row in rows]


def _ledger(run: RunView) -> dict[str, Any]:
    head = ledger.head(run.connection)
    return {"count": head.count, "head": head.hash}


def _reproduce(run: RunView) -> dict[str, Any]:
    """Return the command that makes the run again from its own folder, and what it was resolved to."""
    folder = run.config.run.dir.rstrip("/")
    same_texts = [f"constitution={folder}/constitution.yaml", f"templates={folder}/prompts"]
    same_texts += [f"{key}={place}" for key, place in run.manifest.get("places", {}).items()]
    return {
        "command": shlex.join(["cai", "run", f"{folder}/config.yaml", f"run.dir={folder}-again", *same_texts]),
        "config": redacted((run.folder / "config.yaml").read_text(encoding="utf-8")),
    }
