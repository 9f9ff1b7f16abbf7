"""summary: what became of every comparison, what the judge did, what moves it that should not, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from cai.audit.questions import QUESTIONS
from cai.audit.views import Views
from cai.evaluate.intervals import wilson
from cai.evaluate.judging import JudgeCount
from cai.records import Judgment, Order
from cai.stages.admit import Accounting
from cai.trail import Ended, RunView

LOW_MARGIN = 0.1
"""A probability nearer to one half than this is a low margin."""
NEAR_CONSTANT = 0.05
"""A critique that makes up a larger share of all critiques than this is told."""


def summary(run: RunView) -> dict[str, Any]:
    """Return the audit of a run's training phases as JSON can say it. Shares carry Wilson intervals."""
    views = Views(run)
    counted, judged, by_order = Accounting(), JudgeCount(run.questions), Counter[tuple[str, Order, str]]()
    margins = Counter[bool]()

    def count(end: Ended) -> None:
        counted.count(end.admission)
        judged.add(end)
        p_a = end.settled.p_a
        margins[p_a is not None and end.settled.label_source == "judge" and abs(p_a - 0.5) < LOW_MARGIN] += 1
        for d in end.decisions:
            if isinstance(d, Judgment) and d.question_id in run.questions:
                by_order[run.questions[d.question_id].principle_id, d.order, d.verdict] += 1

    views.fold(count)
    return {
        "run": str(run.folder),
        "accounting": counted.as_dict(),
        "judge": judged.as_dict(),
        "verdicts": _verdicts(by_order),
        "effects": list(_effects(views)),
        "invalid": list(views.query(QUESTIONS["invalid"].sql).dicts()),
        "low_margin": margins[True],
        "flags": _flags(views),
        "cost": next(views.query(QUESTIONS["cost"].sql).dicts(), None),
        "texts": _texts(views),
        "retried": list(views.query(QUESTIONS["retried"].sql).dicts()),
        "people": _people(views),
    }


def _verdicts(counted: Counter[tuple[str, Order, str]]) -> list[dict[str, Any]]:
    found: dict[tuple[str, Order], dict[str, int]] = {}
    for (principle, order, verdict), n in counted.items():
        found.setdefault((principle, order), {})[verdict] = n
    return [{"principle": p, "order": order, "verdicts": dict(sorted(v.items()))} for (p, order), v in found.items()]


# -- what moves the judge --------------------------------------------------------------------------------------------

_NAMED = """FROM decisions d JOIN pairs p USING (pair_id)
WHERE d.mode <> 'check' AND d.verdict IN ('a', 'b') AND """
_EFFECTS = {
    "first shown": ("d.picked_first", "1"),
    "longer": ("(d.verdict = 'a') = (p.words_a > p.words_b)", "p.words_a <> p.words_b"),
    "with a list": ("(d.verdict = 'a') = (p.list_a > p.list_b)", "p.list_a <> p.list_b"),
    "written by the judge's own model": (
        "(d.verdict = 'a') = (p.author_a = d.judge)",
        "p.author_a IS NOT NULL AND p.author_b IS NOT NULL AND (p.author_a = d.judge) <> (p.author_b = d.judge)",
    ),
    "revision": ("d.verdict = 'b'", "p.source = 'revision'"),
}


def _effects(views: Views) -> Iterator[dict[str, Any]]:
    """Yield how often the judge picks the answer that is first, longer, listed, its own, revised. No effect is 0.5.

    The share is taken over judgments by a model that name a winner; both orders of a pair are in it.
    """
    for name, (hit, where) in _EFFECTS.items():
        n, hits = views.query(f"SELECT count(*), sum({hit}) {_NAMED} {where}").rows[0]
        yield {"picks the answer": name} | (_share(hits or 0, n) or {"value": None, "low": None, "high": None, "n": 0})


def _share(hits: int, n: int) -> dict[str, Any] | None:
    interval = wilson(hits, n)
    return None if interval is None else {"value": hits / n, "low": interval[0], "high": interval[1], "n": n}


def _flags(views: Views) -> dict[str, Any]:
    found = list(views.query(QUESTIONS["injections"].sql).dicts())
    speaking = [f for f in found if f["in_a"] != f["in_b"]]
    return {
        "flagged_by_the_judge_stage": sum(f["flags"] is not None for f in found),
        "answers_that_speak_to_a_judge": len(speaking),
        "judge_preferred_them": _share(sum(bool(f["followed"]) for f in speaking), len(speaking)),
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
    yield "the judge picks the answer that is (50% is no effect)"
    for row in found["effects"]:
        yield f"  {row['picks the answer']}: {_told(row)}"
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
            yield f"  {row['reason']} ({row['principle_id']}): {row['n']:,}"
    yield f"low margins (p_a within {LOW_MARGIN} of one half): {found['low_margin']:,}"
    flags = found["flags"]
    yield (
        f"answers that speak to a judge: {flags['answers_that_speak_to_a_judge']:,}, preferred: "
        f"{_told(flags['judge_preferred_them'])}; flagged while judging: {flags['flagged_by_the_judge_stage']:,}"
    )
    texts = found["texts"]
    for row in texts["near_constant_critiques"]:
        yield f"! the same critique {row['n']:,} times ({row['share']:.0%}): {row['text'][:80]}"
    for row in texts["recurring_answers_that_always_win"]:
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
        yield f"cost: {cost['calls']:,} calls, {cost['seconds']:,.0f} s{reused}{per}"
    yield f"people: {found['people']['votes']} votes hold, {found['people']['overrides']} labels set by people"


def _told(share: dict[str, Any] | None) -> str:
    if share is None or share.get("value") is None:
        return "-"
    return f"{share['value']:.1%} ({share['low']:.1%} to {share['high']:.1%}, n {share['n']:,})"
