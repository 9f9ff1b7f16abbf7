"""compare: what two runs were made from, and which labels differ because of it."""

from __future__ import annotations

import difflib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

from cai import canon
from cai.constitution import PARTS, Constitution
from cai.evaluate.intervals import wilson
from cai.manifest import FREE_FIELDS, _flat
from cai.records import PEOPLE, Judgment, Question
from cai.stages.settle import Vote
from cai.trail import Ended, RunView


def compare(one: RunView, other: RunView) -> dict[str, Any]:
    """Return what differs: `config`, `models`, `templates`, `constitution`, and the `flips` of pairs both runs have.

    Pairs are the same where conversation and both answers are, word for word. A flip names the principles whose vote
    or weight differs and why: the weight; where the judge answered otherwise, the text, template, model or mode
    that asked for them, or sampling where those are the same; where they do not, the fold rule that reads them.
    A cause of a flip can also be an override.
    """
    matched, renamed = list(_matched(one, other)), _renamed(one.constitution, other.constitution)
    flips = [_flip(one, other, a, b, renamed) for a, b in matched if a.settled.label != b.settled.label]
    rate = wilson(len(flips), len(matched))
    return {
        "runs": [str(one.folder), str(other.folder)],
        "config": _fields(one, other),
        "models": _changed(one.models, other.models),
        "templates": _templates(one, other),
        "constitution": list(_constitution(one.constitution, other.constitution, renamed)),
        "pairs": {"one": _n_pairs(one), "other": _n_pairs(other), "matched": len(matched)},
        "flip_rate": None
        if rate is None
        else {"value": len(flips) / len(matched), "low": rate[0], "high": rate[1], "n": len(matched)},
        "causes": dict(Counter(cause for flip in flips for cause in flip["causes"]).most_common()),
        "flips": flips,
    }


# -- what they were made from ----------------------------------------------------------------------------------------


def _fields(one: RunView, other: RunView) -> list[dict[str, Any]]:
    before, after = _flat(one.config_tree), _flat(other.config_tree)
    names = sorted(n for n in before.keys() | after.keys() if not n.startswith(FREE_FIELDS))
    return [{"field": n, "one": before.get(n), "other": after.get(n)} for n in names if before.get(n) != after.get(n)]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, list[Any]]:
    names = before.keys() | after.keys()
    return {n: [before.get(n), after.get(n)] for n in sorted(names) if before.get(n) != after.get(n)}


def _templates(one: RunView, other: RunView) -> list[dict[str, Any]]:
    found = []
    for name, template in one.templates.by_name.items():
        theirs = other.templates.by_name.get(name)
        if theirs is not None and theirs.id != template.id:
            found.append({"template": name, "diff": _diff(template.source, theirs.source)})
    return found


def _renamed(one: Constitution, other: Constitution) -> dict[str, str]:
    """Return old ids by new ones, for principles of which every text is the same."""
    gone = {canon.dumps(p.part_ids): p.id for p in one.principles if p.id not in other.by_id}
    new = [(p.id, canon.dumps(p.part_ids)) for p in other.principles if p.id not in one.by_id]
    return {id_: gone.pop(texts) for id_, texts in new if texts in gone}


def _constitution(one: Constitution, other: Constitution, renamed: dict[str, str]) -> Iterator[dict[str, Any]]:
    """Yield every principle that was added, removed, renamed or changed, with the parts that differ."""
    ours, theirs = {p.id: p for p in one.principles}, {renamed.get(p.id, p.id): p for p in other.principles}
    for id_ in ours.keys() - theirs.keys():
        yield {"principle": id_, "change": "removed", "line": one.line_of(id_)}
    for id_ in theirs.keys() - ours.keys():
        yield {"principle": id_, "change": "added", "line": other.line_of(id_)}
    for id_ in (i for i in ours if i in theirs):
        before, after = ours[id_].model_dump(mode="json"), theirs[id_].model_dump(mode="json")
        parts = [n for n in ("id", *PARTS, "weight", "domains", "title") if before.get(n) != after.get(n)]
        if parts:
            yield {
                "principle": theirs[id_].id,
                "change": "renamed" if "id" in parts else "edited",
                "parts": {n: [before.get(n), after.get(n)] for n in parts},
                "line": other.line_of(theirs[id_].id),
            }


def _diff(before: str, after: str) -> list[str]:
    return list(difflib.unified_diff(before.splitlines(), after.splitlines(), "one", "other", lineterm="", n=1))


# -- which labels differ ---------------------------------------------------------------------------------------------


def _ends(run: RunView) -> Iterator[Ended]:
    for phase in run.phases:
        yield from run.ended(phase)


def _n_pairs(run: RunView) -> int:
    query = "SELECT count(*) FROM records WHERE tag = 'comparison' AND phase IN (SELECT value FROM json_each(?))"
    return int(run.connection.execute(query, (json.dumps(run.phases),)).fetchone()[0])


def _key(end: Ended) -> tuple[str, str, str]:
    return end.prompt.id, end.arms[0].text, end.arms[1].text


def _matched(one: RunView, other: RunView) -> Iterator[tuple[Ended, Ended]]:
    theirs: dict[tuple[str, str, str], Ended] = {}
    for end in _ends(other):
        theirs.setdefault(_key(end), end)
    for end in _ends(one):
        if _key(end) in theirs:
            yield end, theirs.pop(_key(end))


def _flip(one: RunView, other: RunView, a: Ended, b: Ended, renamed: dict[str, str]) -> dict[str, Any]:
    ours, theirs = _votes(a), {renamed.get(id_, id_): vote for id_, vote in _votes(b).items()}
    changed = []
    for id_ in sorted(ours.keys() | theirs.keys()):
        mine, yours = ours.get(id_), theirs.get(id_)
        if _said(mine) != _said(yours) or _moved(mine, yours) or _weight(mine) != _weight(yours):
            changed.append({"principle": id_, "one": _said(mine), "other": _said(yours),
                            "why": _why(one, other, a, b, mine, yours)})  # fmt: skip
    causes = sorted({cause for c in changed for cause in c["why"]})
    if PEOPLE & {a.settled.label_source, b.settled.label_source}:
        causes.append("override")
    return {
        "pair_id": a.comparison.id,
        "other_pair_id": b.comparison.id,
        "prompt": a.prompt.messages[-1].content,
        "label": a.settled.label,
        "other_label": b.settled.label,
        "p_a": a.settled.p_a,
        "other_p_a": b.settled.p_a,
        "principles": changed,
        "causes": causes or ["fold rule"],
    }


def _votes(end: Ended) -> dict[str, Vote]:
    return {v.principle_id: v for v in end.settled.votes}


def _said(vote: Vote | None) -> str:
    if vote is None:
        return "not asked"
    if vote.stand != "votes" or vote.p_a is None:
        return vote.stand
    return "tie" if vote.is_tie else "a" if vote.p_a > 0.5 else "b"


def _weight(vote: Vote | None) -> float | None:
    return vote.weight if vote else None


def _moved(mine: Vote | None, yours: Vote | None) -> bool:
    """Return whether a vote is differently strong, which can turn the weighted mean though every winner stays."""
    ours, theirs = (v.p_a if v and v.p_a is not None else 0.5 for v in (mine, yours))
    return abs(ours - theirs) > 1e-9


def _why(one: RunView, other: RunView, a: Ended, b: Ended, mine: Vote | None, yours: Vote | None) -> list[str]:
    if mine is None or yours is None:
        return ["principle added or removed"]
    ours, theirs = _question(one, a, mine), _question(other, b, yours)
    if ours is None or theirs is None:
        return ["not decided in one run"]
    found = ["weight"] if mine.weight != yours.weight else []
    if _evidence(a, mine) == _evidence(b, yours):
        # The same readings: what folds them differs, such as `judge.on_disagreement`.
        return [*found, "fold rule"] if _said(mine) != _said(yours) or not found else found
    parts = {"text": "text_id", "template": "template_id", "model": "judge", "mode": "mode", "settings": "settings_id"}
    differ = [name for name, field in parts.items() if getattr(ours, field) != getattr(theirs, field)]
    return found + (differ or ["sampling"])


def _evidence(end: Ended, vote: Vote) -> list[tuple[str, str, float | None]]:
    """Return what the judgments behind a vote say, by order."""
    by_id = {d.id: d for d in end.decisions if isinstance(d, Judgment)}
    return sorted((by_id[i].order, by_id[i].verdict, by_id[i].p_a) for i in vote.judgment_ids)


def _question(run: RunView, end: Ended, vote: Vote) -> Question | None:
    for decision in end.decisions:
        if decision.id in vote.judgment_ids:
            return run.questions.get(decision.question_id)  # type: ignore[union-attr]
    return None


# -- in words --------------------------------------------------------------------------------------------------------


def told(found: dict[str, Any]) -> Iterator[str]:
    """Yield the comparison's lines for a terminal."""
    yield f"{found['runs'][0]} against {found['runs'][1]}"
    for row in found["config"]:
        yield f"  config {row['field']}: {row['one']!r} -> {row['other']!r}"
    for role, (before, after) in found["models"].items():
        yield f"  {role}: {before} -> {after}"
    for row in found["templates"]:
        yield f"  template {row['template']}:"
        yield from (f"    {line}" for line in row["diff"][:30])
    for row in found["constitution"]:
        yield f"  principle '{row['principle']}' {row['change']} ({row['line']})"
        for part, (before, after) in row.get("parts", {}).items():
            yield f"    {part}: {before!r} -> {after!r}"
    pairs, rate = found["pairs"], found["flip_rate"]
    yield f"pairs {pairs['one']:,} and {pairs['other']:,}, the same in both {pairs['matched']:,}"
    if rate:
        flips = len(found["flips"])
        yield f"labels that differ: {flips:,} = {rate['value']:.1%} ({rate['low']:.1%} to {rate['high']:.1%})"
    for cause, n in found["causes"].items():
        yield f"  because of {cause}: {n:,}"
    for flip in found["flips"][:20]:
        principles = ", ".join(f"{c['principle']} {c['one']}->{c['other']}" for c in flip["principles"])
        yield f"  {flip['pair_id']}: {flip['label']} -> {flip['other_label']} ({principles or 'no principle'})"
    if len(found["flips"]) > 20:
        yield f"  ... and {len(found['flips']) - 20:,} more (--json shows all)"
