"""Asking the judge again what it was asked before, to see how far it repeats itself. Nothing is kept of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from cai import canon
from cai.engine.model import ScoreGroup
from cai.errors import UserError
from cai.executors import local
from cai.manifest import RunLock
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.records import Judgment
from cai.stages.judge import reread
from cai.store.calls import Answer
from cai.templates import Turn
from cai.trail import RunView

MODES = ("logprob", "cot", "score", "rubric")
"""Modes in which the run's own judge decides, so that it can be asked again."""


def reask(folder: str | Path, n: int) -> dict[str, Any]:
    """Ask `n` decisions again, drawn by hash, and return how many came out the same.

    `n` asked, of `n_able` that could be, `agreed` with the same verdict, `largest` change of p_a, `differences`.
    Decisions that rest on reasoning are asked for the verdict only, with the reasons as they were kept.
    """
    with RunView(folder) as run:
        return _locked(run, n)


def _locked(run: RunView, n: int) -> dict[str, Any]:
    lock = RunLock(run.folder)
    lock.acquire()
    try:
        able = _able(run)
        return local.run(_reask(run, able[:n])) | {"n_able": len(able)}
    finally:
        lock.release()


def _able(run: RunView) -> list[Judgment]:
    """Return the judgments that rest on probabilities, in an order of chance that is always the same."""
    rows = run.connection.execute(
        "SELECT body FROM ledger JOIN calls ON calls.key = json_extract(body, '$.call_key') "
        "WHERE tag = 'judgment' AND calls.kind = 'score'"
    )
    found = sorted((Judgment.parse(body) for (body,) in rows), key=lambda j: canon.unit_interval("reask", j.id))
    current = run.manifest["models"]["judge"]
    weighed = {run.bench.question(p).id for p in run.constitution.principles}  # a rubric is read by its weights
    own = [q for q in run.questions.values() if q.judge == current and q.mode in MODES]
    asked = {q.id for q in own if q.mode != "rubric" or q.id in weighed}
    mine = [j for j in found if j.question_id in asked]
    if not mine:
        raise UserError(
            f"{run.folder}: no decision was made by the present judge '{current}' alone, in a mode of "
            f"{', '.join(MODES)}; nothing to ask again"
        )
    return mine


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
    keys = [part.call_key for part in judgment.parts if part.call_key] or [judgment.call_key or ""]
    answers = dict(zip(keys, await asyncio.gather(*(_ask(run, judge, key) for key in keys)), strict=True))
    question = run.questions[judgment.question_id]
    principle = run.constitution.by_id.get(question.principle_id)
    comparison = run.record(judgment.comparison_id)
    return judgment, reread(judgment, comparison, question, run.config.judge, answers.__getitem__, principle)


async def _ask(run: RunView, judge: Any, key: str) -> Answer:
    """Return what the judge answers now where it gave probabilities, and what was kept where it wrote reasons."""
    found = run.call(key)
    assert found is not None
    request, reply = found
    if request["kind"] == "score":
        turns = tuple(Turn(m["role"], m["content"]) for m in request["messages"])
        group = ScoreGroup(turns[:-2], (turns[-2:],), tuple(request["options"]), request.get("mass", True))
        reply = (await judge.score(group))[0]
    return Answer(key, reply, canon.id_of_bytes(canon.dumps(reply.content())))
