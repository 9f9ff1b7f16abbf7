"""Asking the judge again what it was asked before, to see how far it repeats itself. Nothing is kept of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from cai import canon
from cai.engine.model import Reward, ScoreGroup
from cai.errors import UserError
from cai.evaluate.intervals import wilson
from cai.executors import local
from cai.manifest import RunLock
from cai.pipeline import judges
from cai.pipeline.meter import Meter
from cai.pipeline.serving import Fleet
from cai.records import Judgment, Question
from cai.stages.judge import reread
from cai.store.calls import Answer
from cai.templates import Turn
from cai.trail import RunView

_READ = """
SELECT id, body FROM ledger WHERE tag = 'judgment'
    AND json_extract(body, '$.question_id') IN (SELECT value FROM json_each(?))
    AND EXISTS (
        SELECT 1 FROM calls WHERE kind <> 'generate' AND (
            key = json_extract(body, '$.call_key')
            OR key IN (SELECT json_extract(value, '$.call_key') FROM json_each(body, '$.parts'))
        )
    )
"""
"""The judgments under given questions that rest on probabilities or rewards, be it in part."""


def reask(folder: str | Path, n: int) -> dict[str, Any]:
    """Ask `n` decisions again, drawn by hash, and return how many came out the same.

    `n` asked, of `n_able` that could be, `agreed` with the same verdict (share between `low` and `high`, Wilson),
    `largest` change of p_a, `differences`.
    Every reply is asked for again from the model that gave it: a panel's from its members, rewards from the reward
    model. Where a judge wrote reasons it is asked for the verdict only, with the reasons as they were kept.
    """
    with RunView(folder) as run:
        return _locked(run, n)


def _locked(run: RunView, n: int) -> dict[str, Any]:
    lock = RunLock(run.folder)
    lock.acquire()
    try:
        able = _able(run)
        return local.run(_reask(run, [Judgment.parse(body) for body in able[:n]])) | {"n_able": len(able)}
    finally:
        lock.release()


def _able(run: RunView) -> list[str]:
    """Return the judgments that can be asked again, in an order of chance that is always the same."""
    asked = json.dumps([q.id for q in run.questions.values() if _stands(run, q)])
    rows = run.connection.execute(_READ, (asked,)).fetchall()
    if not rows:
        raise UserError(
            f"{run.folder}: the present judge ('{run.bench.judges}') was asked for none of its decisions; nothing to "
            "ask again"
        )
    return [body for _, body in sorted(rows, key=lambda row: canon.unit_interval("reask", row[0]))]


def _stands(run: RunView, question: Question) -> bool:
    """Return whether a question was put to the judge of the present config as it is set, and can still be read."""
    if (question.judge, question.settings_id) != (run.bench.judges, run.bench.settings_id):
        return False
    by_weights = any(seat.mode == "rubric" for seat in run.bench.seated(None))
    return not by_weights or question.id in {run.bench.question(p).id for p in run.constitution.principles}


async def _reask(run: RunView, judgments: list[Judgment]) -> dict[str, Any]:
    fleet = Fleet(run.config, run.folder, Meter())
    try:
        sitting = _sitting(run, fleet)
        pairs = await asyncio.gather(*(_again(run, sitting, j) for j in judgments))
    finally:
        await fleet.release_all()
    moved = [abs(b.p_a - a.p_a) for a, b in pairs if a.p_a is not None and b.p_a is not None]
    agreed = sum(a.verdict == b.verdict for a, b in pairs)
    low, high = wilson(agreed, len(pairs)) or (0.0, 1.0)
    return {
        "n": len(pairs),
        "agreed": agreed,
        "low": low,
        "high": high,
        "largest": max(moved, default=0.0),
        "differences": [
            {"decision_id": a.id, "kept": a.verdict, "now": b.verdict, "kept_p_a": a.p_a, "now_p_a": b.p_a}
            for a, b in pairs
            if a.verdict != b.verdict
        ],
    }


def _sitting(run: RunView, fleet: Fleet) -> dict[str, Any]:
    """Return who judges, by identity. Raises UserError where the config leads to somebody else by now."""
    judge: Any = fleet.model(run.config.models.judge or run.config.models.policy, "judge")
    seats = judges.seats(run.config, fleet, Meter(), judge, lambda model: model)
    found = {seat.identity: seat.model for seat in seats} or {judge.identity: judge}
    if gone := [seat.identity for seat in run.bench.seated(None) if seat.identity not in found]:
        raise UserError(
            f"{run.folder}: '{gone[0]}' judged here, and its config now leads to '{', '.join(found)}'; put the model "
            "back to ask it again"
        )
    return found


async def _again(run: RunView, sitting: dict[str, Any], judgment: Judgment) -> tuple[Judgment, Judgment]:
    """Return (the judgment that was kept, the one that the judge gives now)."""
    keys = {part.call_key for part in judgment.parts if part.call_key} or {judgment.call_key or ""}
    answers = {answer.key: answer for answer in await asyncio.gather(*(_ask(run, sitting, key) for key in keys))}
    question = run.questions[judgment.question_id]
    principle = run.constitution.by_id.get(question.principle_id)
    comparison = run.record(judgment.comparison_id)
    return judgment, reread(judgment, comparison, question, run.config.judge, answers.__getitem__, principle)


async def _ask(run: RunView, sitting: dict[str, Any], key: str) -> Answer:
    """Return what is answered now where probabilities or a reward were, and what was kept where reasons were."""
    found = run.call(key)
    assert found is not None
    request, reply = found
    turns = tuple(Turn(m["role"], m["content"]) for m in request["messages"])
    if request["kind"] == "score":
        group = ScoreGroup(turns[:-2], (turns[-2:],), tuple(request["options"]), request.get("mass", True))
        reply = (await sitting[request["model"]].score(group))[0]
    elif request["kind"] == "reward":
        reply = await sitting[request["model"]].reward(Reward(turns[:-1], turns[-1].text))
    return Answer(key, reply, canon.id_of_bytes(canon.dumps(reply.content())))
