"""summary: what became of every comparison, what the judge did, what moves it that should not, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from cai.audit.effects import Effects, share
from cai.audit.families import Families
from cai.audit.questions import QUESTIONS
from cai.audit.views import Look, Views
from cai.evaluate.judging import JudgeCount
from cai.records import Judgment, Order
from cai.stages.admit import Accounting
from cai.trail import Ended, RunView

LOW_MARGIN = 0.1
"""A probability nearer to one half than this is a low margin."""
NEAR_CONSTANT = 0.05
"""A critique that makes up a larger share of all critiques than this is told."""
MOST_TOLD = 5
"""Recurring winners that are told in words."""


def summary(run: RunView) -> dict[str, Any]:
    """Return the audit of a run's training phases as JSON can say it. Shares carry Wilson intervals."""
    with Views(run) as views:
        return _summary(run, views)


def _summary(run: RunView, views: Views) -> dict[str, Any]:
    counted, judged, effects = Accounting(), JudgeCount(run.questions), Effects(run.questions, Families(run))
    by_order, margins = Counter[tuple[str, Order, str]](), Counter[str]()

    def count(end: Ended, look: Look) -> None:
        counted.count(end.admission)
        judged.add(end, look.words)
        effects.add(end, *look)
        margins["labels"] += end.settled.label_source == "judge" and _is_close(end.settled.p_a)
        for d in end.standing:
            if isinstance(d, Judgment) and d.question_id in run.questions:
                question = run.questions[d.question_id]
                by_order[question.principle_id, d.order, d.verdict] += 1
                margins["decisions"] += question.mode != "check" and _is_close(d.p_a)

    views.fold(count)
    return {
        "run": str(run.folder),
        "accounting": counted.as_dict(),
        "judge": judged.as_dict(),
        "verdicts": _verdicts(by_order),
        "effects": list(effects.shares()),
        "position": effects.position(),
        "invalid": list(views.query(QUESTIONS["invalid"].sql).dicts()),
        "low_margin": margins["labels"],
        "low_margin_decisions": margins["decisions"],
        "flags": _flags(views),
        "cost": _cost(views),
        "texts": _texts(views),
        "critiques_contradicted": _contradicted(views),
        "canaries": list(views.query(QUESTIONS["canaries"].sql).dicts()),
        "retried": list(views.query(QUESTIONS["retried"].sql).dicts()),
        "people": _people(views),
    }


def _is_close(p_a: float | None) -> bool:
    return p_a is not None and abs(p_a - 0.5) < LOW_MARGIN


def _verdicts(counted: Counter[tuple[str, Order, str]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, Order], dict[str, int]] = {}
    for (principle, order, verdict), n in counted.items():
        found.setdefault((principle, order), {})[verdict] = n
    return [{"principle": p, "order": order, "verdicts": dict(sorted(v.items()))} for (p, order), v in found.items()]


# -- what texts tell ---------------------------------------------------------------------------------------------------


def _cost(views: Views) -> dict[str, Any]:
    """Return calls, tokens and seconds, also per kept pair; None is what the log does not know."""
    found = next(views.query(QUESTIONS["cost"].sql).dicts())
    # A session's seconds are wall time: which devices were busy, and at what price, is not in the log.
    return found | {"gpu_seconds_per_kept_pair": None, "money_per_kept_pair": None}


def _flags(views: Views) -> dict[str, Any]:
    found = list(views.query(QUESTIONS["injections"].sql).dicts())
    speaking = [f for f in found if f["in_a"] != f["in_b"]]
    return {
        "flagged_by_the_judge_stage": sum(f["flags"] is not None for f in found),
        "answers_that_speak_to_a_judge": len(speaking),
        "judge_preferred_them": share(sum(bool(f["followed"]) for f in speaking), len(speaking)),
    }


def _texts(views: Views) -> dict[str, Any]:
    """Return near-constant critiques, and the null-model check: texts given to several prompts, and how they fare."""
    found = list(views.query(QUESTIONS["constant-texts"].sql).dicts())
    (n,) = views.query("SELECT count(*) FROM critiques WHERE passed IS NULL").rows[0]
    constant = [f for f in found if f["kind"] == "critique" and n and f["n"] / n > NEAR_CONSTANT and f["prompts"] > 2]
    answers = [f for f in found if f["kind"] == "answer"]
    return {
        "critiques": n,
        "near_constant_critiques": [{"text": f["text"][:200], "n": f["n"], "share": f["n"] / n} for f in constant],
        "recurring_answers": len(answers),
        "recurring_answers_that_always_win": [
            {"text": f["text"][:200], "n": f["n"], "prompts": f["prompts"]}
            for f in answers
            if (f["win_rate"] or 0) >= 0.9
        ],
    }


def _contradicted(views: Views) -> dict[str, Any]:
    """Return how often the judge prefers the answer it criticised, by the same principle, where it ever does."""
    found = {row["principle_id"]: row for row in views.query(QUESTIONS["critique-contradicts"].sql).dicts()}
    told = {name: share(round(row["rate"] * row["n"]), row["n"]) for name, row in found.items()}
    whole = next(iter(found.values()), None)
    return {
        "all": whole and share(round(whole["rate_of_all"] * whole["n_of_all"]), whole["n_of_all"]),
        "principles": told,
    }


def _people(views: Views) -> dict[str, int]:
    rows = views.query(
        "SELECT (SELECT count(*) FROM reviews WHERE holds), (SELECT count(*) FROM overrides WHERE holds)"
    ).rows[0]
    return {"votes": rows[0], "overrides": rows[1]}


# -- in words --------------------------------------------------------------------------------------------------------


def told(found: dict[str, Any]) -> Iterator[str]:
    """Yield the summary's lines for a terminal."""
    from cai.audit.lines import columns

    accounting = found["accounting"]
    yield f"comparisons {accounting['comparisons']:,}, rows {accounting['rows']:,}"
    states = {k: v for k, v in accounting.items() if isinstance(v, int) and v and k not in ("comparisons", "rows")}
    yield "  " + ", ".join(f"{k} {v:,}" for k, v in states.items())
    if accounting["filtered_by"]:
        yield "  filtered by " + ", ".join(f"{k} {v:,}" for k, v in accounting["filtered_by"].items())
    yield ""
    yield from columns(_principle_rows(found["judge"]["principles"]))
    for sentence in found["judge"]["weaknesses"]:
        yield f"! {sentence}"
    yield ""
    yield "verdicts by principle and order"
    for row in found["verdicts"]:
        yield f"  {row['principle']} {row['order']}: " + ", ".join(f"{k} {v:,}" for k, v in row["verdicts"].items())
    yield ""
    yield "the judge picks the answer that is (50% is no effect; 95% intervals over prompts)"
    for row in found["effects"]:
        yield f"  {row['picks the answer']}: {_told(row)}"
    if position := found["position"]:
        yield (
            f"  of questions asked in both orders {position['first_both_times']:,} picked the first both times, "
            f"{position['second_both_times']:,} the second, {position['same_arm']:,} the same answer "
            f"({position['test']}: p = {position['p_value']:.2g})"
        )
    yield from _told_rest(found)


def _principle_rows(principles: Iterable[dict[str, Any]]) -> Iterator[dict[str, str]]:
    for p in principles:
        yield {
            "principle": p["principle"],
            "by": "code" if p["judged_by"] == "code" else "judge",
            "due": f"{p['due']:,}",
            "votes": f"{p['votes']:,}",
            "abstains": f"{p['abstained']:,}",
            "invalid": f"{p['invalid'] + p['refused']:,}",
            "for a": f"{p['for_a']:,}",
            "for b": f"{p['for_b']:,}",
            "orders agree": _told(p["consistency"]),
        }


def _told_rest(found: dict[str, Any]) -> Iterator[str]:
    if found["invalid"]:
        yield "invalid replies by cause"
        for row in found["invalid"]:
            where = f" ({row['principle_id']})" if row["principle_id"] else ""
            yield f"  {row['reason']}{where}: {row['n']:,}"
    yield (
        f"low margins (within {LOW_MARGIN} of one half): {found['low_margin_decisions']:,} decisions, "
        f"{found['low_margin']:,} labels"
    )
    flags = found["flags"]
    yield (
        f"answers that speak to a judge: {flags['answers_that_speak_to_a_judge']:,}, preferred: "
        f"{_told(flags['judge_preferred_them'])}; flagged while judging: {flags['flagged_by_the_judge_stage']:,}"
    )
    for row in found["canaries"]:
        followed = "" if row["followed"] is None else f", followed in {row['followed']:.1%} of {row['could_follow']:,}"
        yield f"  canary, {row['canary']} '{row['what']}': {row['n']:,}{followed}"
    if contradicted := found["critiques_contradicted"]["all"]:
        yield f"of what it criticised, the judge prefers to the revision, by the same principle: {_told(contradicted)}"
    texts = found["texts"]
    for row in texts["near_constant_critiques"]:
        yield f"! the same critique {row['n']:,} times ({row['share']:.0%}): {row['text'][:80]}"
    winners = texts["recurring_answers_that_always_win"]
    if len(winners) > MOST_TOLD:
        yield f"! {len(winners):,} texts win for several prompts each; the first {MOST_TOLD} (--json tells all):"
    for row in winners[:MOST_TOLD]:
        yield f"! one text wins for {row['prompts']} prompts: {row['text'][:80]}"
    for row in found["retried"]:
        name = "retried" if row["retried"] else "asked once"
        yield f"{name}: {row['n']:,} decisions, a {row['a']:.1%}, b {row['b']:.1%}, unusable {row['unusable']:.1%}"
    cost = found["cost"]
    if cost and cost["calls"] is not None:
        per = "" if not cost["kept"] else (
            f"; per kept pair {cost['tokens_per_kept_pair']:,.0f} tokens and {cost['seconds_per_kept_pair']:.2f} s"
        )  # fmt: skip
        reused = "" if cost["reused_share"] is None else f", {cost['reused_share']:.0%} of answers reused"
        yield f"cost: {cost['calls']:,} calls, {cost['seconds']:,.0f} s{reused}{per}; GPU-seconds and money: unknown"
    yield f"people: {found['people']['votes']} votes hold, {found['people']['overrides']} labels set by people"


def _told(share: dict[str, Any] | None) -> str:
    if share is None or share.get("value") is None:
        return "-"
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%}, n {share['n']:,})"
