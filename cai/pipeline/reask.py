"""Asking the judge again what it was asked before, to see how far it repeats itself. Nothing is kept of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cai import canon
from cai.engine.model import ScoreGroup
from cai.errors import UserError
from cai.manifest import RunLock
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.records import Judgment
from cai.stages.judge import reread
from cai.stages.judge.bench import ORDERED_MODES
from cai.store.calls import Answer
from cai.templates import Turn
from cai.trail import RunView


def reask(folder: str | Path, n: int) -> dict[str, Any]:
    """Ask `n` decisions again, drawn by hash, and return how many came out the same.

    `n` asked, `agreed` with the same verdict, `largest` change of p_a, `differences`. Decisions that rest on reasoning
    are asked for the verdict only, with the reasons as they were kept.
    """
    with RunView(folder) as run:
        return _locked(run, n)


def _locked(run: RunView, n: int) -> dict[str, Any]:
    lock = RunLock(run.folder)
    lock.acquire()
    try:
        return asyncio.run(_reask(run, _drawn(run, n)))
    finally:
        lock.release()


def _drawn(run: RunView, n: int) -> list[Judgment]:
    """Return judgments whose call offered letters, the first `n` in an order of chance that is always the same."""
    rows = run.connection.execute(
        "SELECT body FROM ledger JOIN calls ON calls.key = json_extract(body, '$.call_key') "
        "WHERE tag = 'judgment' AND calls.kind = 'score'"
    )
    found = sorted((Judgment.parse(body) for (body,) in rows), key=lambda j: canon.unit_interval("reask", j.id))
    current = run.manifest["models"]["judge"]
    asked = {q.id for q in run.questions.values() if q.judge == current and q.mode in ORDERED_MODES}
    mine = [j for j in found if j.question_id in asked]
    if not mine:
        raise UserError(f"{run.folder}: no decision was made by the present judge '{current}'; nothing to ask again")
    return mine[:n]


async def _reask(run: RunView, judgments: list[Judgment]) -> dict[str, Any]:
    fleet = Fleet(run.config, run.folder, Meter())
    judge = fleet.model(run.config.models.judge or run.config.models.policy, "judge")
    try:
        pairs = await asyncio.gather(*(_again(run, judge, j) for j in judgments))
    finally:
        await fleet.release_all()
    moved = [abs(b.p_a - a.p_a) for a, b in pairs if a.p_a is not None and b.p_a is not None]
    return {
        "n": len(pairs),
        "agreed": sum(a.verdict == b.verdict for a, b in pairs),
        "largest": max(moved, default=0.0),
        "differences": [
            {"decision_id": a.id, "kept": a.verdict, "now": b.verdict, "kept_p_a": a.p_a, "now_p_a": b.p_a}
            for a, b in pairs
            if a.verdict != b.verdict
        ],
    }


async def _again(run: RunView, judge: Any, judgment: Judgment) -> tuple[Judgment, Judgment]:
    """Return (the judgment that was kept, the one that the judge gives now)."""
    keys = [part.call_key or "" for part in judgment.parts] or [judgment.call_key or ""]
    answers = dict(zip(keys, await asyncio.gather(*(_answer(run, judge, key) for key in keys)), strict=True))
    question, comparison = run.questions[judgment.question_id], run.record(judgment.comparison_id)
    return judgment, reread(judgment, comparison, question, run.config.judge, answers.__getitem__)


async def _answer(run: RunView, judge: Any, key: str) -> Answer:
    """Return what the judge answers now to a kept request; reasons that were cut led to no question, and stay."""
    found = run.call(key)
    assert found is not None
    request, reply = found
    if "options" in request:
        turns = tuple(Turn(m["role"], m["content"]) for m in request["messages"])
        reply = (await judge.score(ScoreGroup(turns[:-2], (turns[-2:],), tuple(request["options"]))))[0]
    return Answer(key, reply, canon.id_of_bytes(canon.dumps(reply.content())))
