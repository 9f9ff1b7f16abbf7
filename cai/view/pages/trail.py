"""Why a comparison ended as it did: the texts, every principle's vote in both orders, the fold, and who overrode it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cai import checks
from cai.records import (
    Comparison,
    Critique,
    Judgment,
    Override,
    Prompt,
    Response,
    ReviewItem,
    Revision,
    Vote,
    Withdrawal,
    parse,
)
from cai.stages.settle import Settled, settle
from cai.store import ledger
from cai.trail import RunView
from cai.view import words
from cai.view.page import Ask, NotFound, is_id, run_path
from cai.view.site import Run


def collect(ask: Ask) -> dict[str, Any]:
    """Return the whole trail of a comparison, found by its id or by that of a decision on it. Raises NotFound."""
    run = ask.run
    view, _ = run.followed()
    comparison = find_comparison(view, ask.params["id"])
    prompt = view.record(comparison.prompt_id)
    arms = (view.record(comparison.a_id), view.record(comparison.b_id))
    decisions = ledger.of_comparison(view.connection, comparison.id)
    rules = view.config.judge
    settled = settle(
        comparison.id,
        decisions,
        view.due(comparison, prompt.domain),
        on_disagreement=rules.on_disagreement,
        tie_margin=rules.tie_margin,
    )
    run.reckoning(patience_s=0)
    end = next(
        iter(
            run.index.query(
                "SELECT state, ends.reason FROM ends JOIN comparisons USING (c) WHERE id = ?", (comparison.id,)
            )
        ),
        None,
    )
    run.show_to(ask.visitor.name, [comparison.id])
    names = words.arms(comparison.source)
    judgments = [d for d in decisions if isinstance(d, Judgment)]
    return {
        "run": run.name,
        "id": comparison.id,
        "phase": comparison.phase,
        "source": comparison.source,
        "prompt": {
            "id": prompt.id,
            "source_id": prompt.source_id,
            "domain": prompt.domain,
            "messages": [m.model_dump() for m in prompt.messages],
        },
        "sides": [_side(view, prompt, name, arm) for name, arm in zip(names, arms, strict=True)],
        "critiques": list(_critiques(view, arms[1])),
        "ended": _ended(settled, end),
        "settled": _settled(settled, names),
        "rule": {"on_disagreement": rules.on_disagreement, "tie_margin": rules.tie_margin, "mode": rules.mode},
        "votes": [_vote(run, view, vote, judgments, names) for vote in settled.votes],
        "left_out": _left_out(view, settled, judgments),
        "overrides": [_override(d, names, decisions) for d in decisions if isinstance(d, Override)],
        "votes_of_people": _votes_of_people(view, comparison.id, names),
        "near": _near(run, comparison),
    }


def _ended(settled: Settled, counted: dict[str, Any] | None) -> dict[str, Any]:
    """Return where it ended, as last counted; a decision made since then comes first."""
    if counted is None or counted["state"] not in (settled.state, "filtered", "tied"):
        return {"state": settled.state, "reason": None}
    return {"state": counted["state"], "reason": counted["reason"]}


def find_comparison(view: RunView, id_: str) -> Comparison:
    """Return the comparison of this id, or the one a decision of this id is about. Raises NotFound."""
    found = view.record(id_) if is_id(id_) else None
    if isinstance(found, (Judgment, Override)):
        found = view.record(found.comparison_id)
    if not isinstance(found, Comparison):
        raise NotFound(f"'{id_}' is no comparison and no decision of this run")
    return found


def _side(view: RunView, prompt: Prompt, name: str, answer: Response | Revision) -> dict[str, Any]:
    marks = [
        (p, checks.run(p.check, answer.text))
        for p in view.constitution.for_domain(prompt.domain)
        if p.check is not None
    ]
    return {
        "label": name,
        "id": answer.id,
        "text": answer.text,
        "words": checks.count_words(answer.text),
        "n_tokens": answer.n_tokens,
        "cut": answer.finish_reason == "length",
        "checks": [
            {"principle": p.id, "title": p.title, "passed": m.passed, "why": None if m.passed else m.sentence()}
            for p, m in marks
        ],
    }


def _critiques(view: RunView, arm: Response | Revision) -> Iterator[dict[str, Any]]:
    """Yield the critiques behind a revision, the last first, with the line of the constitution that asked for each."""
    critique = view.record(arm.critique_id) if isinstance(arm, Revision) else None
    if not isinstance(critique, Critique):
        return
    known = critique.principle_id in view.constitution.by_id
    yield {
        "id": critique.id,
        "principle": critique.principle_id,
        "title": view.constitution[critique.principle_id].title if known else critique.principle_id,
        "line": _line(view, critique.principle_id),
        "round": critique.round,
        "by": "code" if critique.call_key is None else "judge",
        "text": critique.text,
    }
    yield from _critiques(view, view.record(critique.answer_id))


def _line(view: RunView, principle_id: str, *part: str) -> str | None:
    """Return `constitution.yaml:31`, or None for a principle that is no longer in it."""
    if principle_id not in view.constitution.by_id:
        return None
    return view.constitution.line_of(principle_id, *part).rpartition("/")[2]


def _settled(settled: Settled, names: tuple[str, str]) -> dict[str, Any]:
    voting = [v for v in settled.votes if v.stand == "votes"]
    return {
        "state": settled.state,
        "label": settled.label,
        "better": {"a": names[0], "b": names[1], "tie": "tie"}.get(settled.label or ""),
        "p_a": settled.p_a,
        "p_tie": settled.p_tie,
        "confidence": settled.confidence,
        "by": settled.label_source,
        "override_id": settled.override_id,
        "weight_voting": sum(v.weight for v in voting),
        "weight_asked": sum(v.weight for v in settled.votes if v.stand != "not_applicable"),
        "weighted_sum": sum(v.weight * (v.p_a or 0.0) for v in voting),
    }


def _vote(run: Run, view: RunView, vote: Any, judgments: list[Judgment], names: tuple[str, str]) -> dict[str, Any]:
    rests_on = [j for id_ in vote.judgment_ids for j in judgments if j.id == id_]
    known = view.constitution.by_id.get(vote.principle_id)
    return {
        "principle": vote.principle_id,
        "title": known.title if known else vote.principle_id,
        "line": _line(view, vote.principle_id),
        "weight": vote.weight,
        "stand": vote.stand,
        "stand_words": words.STANDS[vote.stand],
        "p_a": vote.p_a,
        "is_tie": vote.is_tie,
        "decisions": [_decision(run, j, names) for j in rests_on],
    }


def _decision(run: Run, judgment: Judgment, names: tuple[str, str]) -> dict[str, Any]:
    seq = run.index.query("SELECT seq FROM decisions WHERE id = ?", (judgment.id,))
    return {
        "id": judgment.id,
        "seq": seq[0]["seq"] if seq else None,
        "href": run_path(run.name, "decision", judgment.id),
        "order": judgment.order,
        "by_code": judgment.call_key is None,
        "verdict": judgment.verdict,
        "verdict_words": {"a": names[0], "b": names[1]}.get(judgment.verdict, words.verdict(judgment.verdict, None)),
        "p_a": judgment.p_a,
        "reason": judgment.reason,
        "flag": judgment.flag,
    }


def _left_out(view: RunView, settled: Settled, judgments: list[Judgment]) -> list[dict[str, str]]:
    """Return the decisions that no longer count, such as those of an earlier wording."""
    counted = settled.judgment_ids
    return [
        {"id": j.id, "principle": view.questions[j.question_id].principle_id, "verdict": j.verdict, "order": j.order}
        for j in judgments
        if j.id not in counted and j.question_id in view.questions
    ]


def _override(override: Override, names: tuple[str, str], decisions: list[Any]) -> dict[str, Any]:
    taken_back = next((d for d in decisions if getattr(d, "withdraws", None) == override.id), None)
    return {
        "id": override.id,
        "label": override.label,
        "better": {"a": names[0], "b": names[1], "tie": "tie"}[override.label],
        "author": override.author,
        "reason": override.reason,
        "blind": override.blind,
        "supersedes": override.supersedes,
        "n_settled": len(override.settles),
        "time": override.time,
        "withdrawn": {"author": taken_back.author, "time": taken_back.time} if taken_back else None,
    }


def _votes_of_people(view: RunView, comparison_id: str, names: tuple[str, str]) -> list[dict[str, Any]]:
    """Return what reviewers said of the comparison, in the order in which they said it, taken back or not."""
    rows = view.connection.execute(
        "SELECT tag, body FROM ledger WHERE subject = ? AND tag IN ('vote', 'withdrawal', 'review_item') ORDER BY seq",
        (comparison_id,),
    )
    events = [parse(tag, body) for tag, body in rows]
    taken_back = {e.withdraws for e in events if isinstance(e, Withdrawal)}
    asked = {e.id: e.principle_id for e in events if isinstance(e, ReviewItem)}
    return [
        {
            "reviewer": vote.reviewer,
            "said": {"a": names[0], "b": names[1]}.get(vote.choice, vote.choice.replace("_", " ")),
            "principle": asked.get(vote.item_id),
            "confidence": vote.confidence,
            "reason": vote.reason,
            "blind": vote.blind,
            "time": vote.time,
            "is_withdrawn": vote.id in taken_back,
        }
        for vote in events
        if isinstance(vote, Vote)
    ]


def _near(run: Run, comparison: Comparison) -> dict[str, str | None]:
    """Return the addresses of the comparisons before and after this one, in the order of prompts."""
    row = run.index.query("SELECT phase, position, c FROM comparisons WHERE id = ?", (comparison.id,))
    if not row or row[0]["position"] is None:
        return {"previous": None, "next": None}
    here = (row[0]["phase"], row[0]["position"], row[0]["position"], row[0]["c"])
    found = {}
    for name, sign, direction in (("previous", "<", "DESC"), ("next", ">", "ASC")):
        near = run.index.query(
            f"SELECT id FROM comparisons WHERE phase = ? AND (position {sign} ? OR (position = ? AND c {sign} ?)) "
            f"ORDER BY position {direction}, c {direction} LIMIT 1",
            here,
        )
        found[name] = run_path(run.name, "trail", near[0]["id"]) if near else None
    return found
