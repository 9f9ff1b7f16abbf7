"""`cai constitution impact`: what an edit would change in a run, found on a sample before a full re-label is paid for.

The sampled comparisons are settled as they stand and as they would stand: decisions that the edit does not touch are
taken from the run's ledger, the others are asked for. Nothing is written into the run. What is asked is kept beside the
runs, where a full re-label finds it.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cai.constitution import Constitution, Principle
from cai.errors import UserError
from cai.evaluate.intervals import wilson
from cai.pipeline.hearing import Hearing
from cai.pipeline.meter import Meter
from cai.records import Judgment
from cai.stages.admit import Admission, Arms, Gate
from cai.stages.judge import Bench, judge
from cai.stages.settle import Settled, Vote, settle
from cai.templates import Fence
from cai.trail import Ended, RunView
from cai.workshop import costs
from cai.workshop.difference import Difference, PrincipleChange, compare
from cai.workshop.judge import FOLDER
from cai.workshop.sampling import Drawn, Stratum, stratum_of

DEFAULT_SAMPLE = 200
_MOST_EXAMPLES = 8
_IN_FLIGHT = 64
JUDGED = ("compare", "check", "rubric")
"""Fields whose change asks the judge (or the check) again."""
SETTLED = ("weight", "domains")
"""Fields whose change settles labels anew without asking."""


@dataclass(frozen=True)
class Redone:
    """One sampled comparison, as it stands and as it would stand."""

    end: Ended
    old: Settled
    new: Settled
    old_row: Admission
    new_row: Admission

    @property
    def row_change(self) -> str:
        """What becomes of its training row: `gained`, `lost`, `reversed`, `kept`, or `none` on both sides."""
        before, after = self.old_row.pair, self.new_row.pair
        if before is None or after is None:
            return "none" if before is after else "gained" if after else "lost"
        return "kept" if before.chosen == after.chosen else "reversed"


@dataclass(frozen=True)
class Preview:
    """An edit, the run it is tried on, and the sample that will tell."""

    run: RunView
    difference: Difference
    bench: Bench
    """The new constitution's questions, for reading; its fence cannot make prompts."""
    touched: frozenset[str]
    """Ids of new principles whose judgments may differ."""
    drawn: Drawn
    sample: tuple[Ended, ...]
    n_comparisons: int
    """All comparisons of the run, those that the edit cannot touch included."""
    owed: Counter[str]
    """Decisions of the judge model that a full re-label has to make, by principle."""

    @property
    def n_touched(self) -> int:
        """Comparisons whose label the edit may change."""
        return sum(self.drawn.seen.values())


def prepare(old: Constitution, new: Constitution, run: RunView, *, size: int) -> Preview:
    """Return the edit with a sample drawn from the run's comparisons. Raises UserError where OLD is not the run's."""
    if old.id != run.constitution.id:
        raise UserError(
            f"{run.folder}: was made with constitution {run.constitution.id}, OLD is {old.id}; "
            f"give {run.folder / 'constitution.yaml'} as OLD"
        )
    difference = compare(old, new)
    bench = replace(run.bench, principles=new.principles)
    touched = frozenset(_touched(difference))
    reaches = [p for c in difference.changed if _matters(c) for p in (c.old, c.new) if p is not None]
    drawn, n_comparisons, owed = Drawn(size, run.config.run.seed), 0, Counter[str]()
    for phase in run.phases:
        for end in run.ended(phase):
            n_comparisons += 1
            if any(p.applies_to(end.prompt.domain) for p in reaches):
                drawn.add(end)
            owed.update(p.id for p, _ in _owed(end, run, bench) if p.check is None)
    if not n_comparisons and not any(phase.revisions for _, phase in costs.phases_of(run)):
        raise UserError(
            f"{run.folder}: found no comparison and no revision, which is all that a constitution decides; give a run "
            "that compares or revises answers"
        )
    return Preview(run, difference, bench, touched, drawn, tuple(drawn.sample()), n_comparisons, owed)


def _matters(change: PrincipleChange) -> bool:
    """Return whether a change can reach a label."""
    return change.kind in ("added", "removed", "renamed") or change.changes(*JUDGED, *SETTLED)


def _touched(difference: Difference) -> Iterator[str]:
    for change in difference.changed:
        if change.new is not None and (change.kind == "added" or change.changes(*JUDGED)):
            yield change.new.id


def _owed(end: Ended, run: RunView, bench: Bench) -> Iterator[tuple[Principle, str]]:
    """Yield (principle, order) for every decision that is due under the new text and was never made."""
    made = {(d.question_id, d.order) for d in end.decisions if isinstance(d, Judgment)}
    due = run.due(end.comparison, end.prompt.domain, bench)
    for question_id, asked in due.items():
        principle = next(p for p in bench.principles if p.id == asked.principle_id)
        for order in asked.orders:
            if (question_id, order) not in made:
                yield principle, order


def needs_model(preview: Preview) -> bool:
    """Return whether any sampled comparison has to be put to the judge."""
    return any(p.check is None for end in preview.sample for p, _ in _owed(end, preview.run, preview.bench))


def workbench(run: RunView) -> Path:
    """Return where calls of a preview are kept: beside the runs, which look there before they ask."""
    return run.folder.resolve().parent / FOLDER


def fence_of(run: RunView) -> Fence:
    """Return the fence with which the run asked its judge, so that equal questions have equal request keys."""
    return Fence.beside(run.folder)


async def redo(preview: Preview, held: Hearing | None, meter: Meter) -> list[Redone]:
    """Return the sampled comparisons as they stand and as they would. `held` may be None where no model is needed."""
    if held is not None:
        then, here = preview.bench, held.bench(preview.bench.principles)
        was, now = ((b.settings.mode, b.judges) for b in (then, here))
        if now == was and here.settings_id != then.settings_id:
            raise UserError(
                f"{preview.run.folder}: was judged under other settings than this config's (tie_margin, "
                "max_outside_mass, prior, canary, few_shot, cot, seed); set them as the run has them in its "
                "config.yaml, or the flips would be the settings' and not the edit's"
            )
        if now != was:
            raise UserError(
                f"{preview.run.folder}: was judged by '{was[1]}' (mode {was[0]}), this config's judge is '{now[1]}' "
                f"(mode {now[0]}); name the same judge, or the flips would be the judge's and not the edit's"
            )
    slots = asyncio.Semaphore(_IN_FLIGHT)

    with meter.stage("judge the sample", len(preview.sample)) as stage:

        async def fresh(end: Ended) -> list[Judgment]:
            async with slots:
                found = await _ask(end, preview, held)
                stage.done += 1
                return found

        made = await asyncio.gather(*(fresh(end) for end in preview.sample))
    gates = Gate(preview.run.config.pairs), Gate(preview.run.config.pairs)
    return [_redone(end, found, preview, gates) for end, found in zip(preview.sample, made, strict=True)]


async def _ask(end: Ended, preview: Preview, held: Hearing | None) -> list[Judgment]:
    principles = {p.id: p for p, _ in _owed(end, preview.run, preview.bench)}
    if not principles:
        return []
    bench = held.bench(list(principles.values())) if held else replace(
        preview.bench, principles=tuple(principles.values()),
        settings=preview.bench.settings.model_copy(update={"principles": "all"}),
    )  # fmt: skip
    texts = [arm.text for arm in end.arms]
    asked = held.judge if held else None
    return await judge(end.comparison, end.prompt, texts[0], texts[1], asked, bench)  # type: ignore[arg-type]


def _redone(end: Ended, found: Sequence[Judgment], preview: Preview, gates: tuple[Gate, Gate]) -> Redone:
    rules = preview.run.config.judge
    settled = [
        settle(
            end.comparison.id,
            decisions,
            preview.run.due(end.comparison, end.prompt.domain, bench),
            on_disagreement=rules.on_disagreement,
            tie_margin=rules.tie_margin,
        )
        for decisions, bench in ((end.decisions, preview.run.bench), (_with(end, found), preview.bench))
    ]
    a, b = end.arms
    arms = Arms(a.text, b.text, a.finish_reason == "length", b.finish_reason == "length")
    rows = [gate.admit(s, end.comparison, end.prompt, arms) for gate, s in zip(gates, settled, strict=True)]
    return Redone(end, settled[0], settled[1], rows[0], rows[1])


def _with(end: Ended, found: Sequence[Judgment]) -> list[Any]:
    """Return the old decisions with the new judgments before any override, which stays the last word."""
    return [*(d for d in end.decisions if isinstance(d, Judgment)), *found,
            *(d for d in end.decisions if not isinstance(d, Judgment))]  # fmt: skip


# -- the figures -------------------------------------------------------------------------------------------------------


def measure(preview: Preview, redone: Sequence[Redone], asked: dict[str, Any]) -> dict[str, Any]:
    """Return everything a preview tells, as JSON can say it. `asked` is what asking the sample took."""
    run, difference = preview.run, preview.difference
    return {
        "run": str(run.folder),
        "judge": run.models["judge"],
        "difference": difference.as_dict(),
        "comparisons": preview.n_comparisons,
        "touched": preview.n_touched,
        "sample": len(redone),
        "strata": [_stratum(s, n, redone) for s, n in sorted(preview.drawn.seen.items())],
        "asked": asked,
        "principles": [_principle(change, preview, redone) for change in difference.changed],
        "labels": _labels(redone),
        "rows": _rows(redone, preview.n_touched),
        "regenerate": costs.regenerated(run, difference, preview.bench),
        "relabel": costs.relabel(
            preview.owed, Counter(_owed_in(redone, preview)), run, asked, preview.bench, difference
        ),
        "examples": [_example(each, preview) for each in _examples(redone, preview)],
    }


def _owed_in(redone: Iterable[Redone], preview: Preview) -> Iterator[str]:
    for each in redone:
        yield from (p.id for p, _ in _owed(each.end, preview.run, preview.bench) if p.check is None)


def _stratum(stratum: Stratum, n: int, redone: Sequence[Redone]) -> dict[str, Any]:
    drawn = sum(stratum_of(each.end) == stratum for each in redone)
    return {**stratum._asdict(), "comparisons": n, "sampled": drawn}


def _share(n_hits: int, n: int) -> dict[str, Any] | None:
    interval = wilson(n_hits, n)
    return None if interval is None else {
        "value": n_hits / n, "low": interval[0], "high": interval[1], "hits": n_hits, "n": n
    }  # fmt: skip


def side_of(vote: Vote | None) -> str:
    """Return what a principle says: `a`, `b`, `tie`, why it says nothing, or `not asked`."""
    if vote is None:
        return "not asked"
    if vote.stand != "votes":
        return vote.stand
    return "tie" if vote.is_tie else "a" if (vote.p_a or 0.0) > 0.5 else "b"


def _principle(change: PrincipleChange, preview: Preview, redone: Sequence[Redone]) -> dict[str, Any]:
    """Return how one changed principle's votes move: a flip is another winner, a move any other verdict."""
    old_id, new_id = change.old.id if change.old else None, change.new.id if change.new else None
    sides, shifts = Counter[tuple[str, str]](), []
    for each in redone:
        before, after = _vote(each.old, old_id), _vote(each.new, new_id)
        if before is None and after is None:
            continue
        sides[side_of(before), side_of(after)] += 1
        if before and after and before.p_a is not None and after.p_a is not None:
            shifts.append(abs(after.p_a - before.p_a))
    n = sum(sides.values())
    flips = sides["a", "b"] + sides["b", "a"]
    return {
        "old": old_id,
        "new": new_id,
        "kind": change.kind,
        "fields": [field.name for field in change.fields],
        "judged_again": new_id in preview.touched,
        "n": n,
        "flips": _share(flips, n),
        "moves": _share(sum(count for (one, other), count in sides.items() if one != other), n),
        "mean_shift": sum(shifts) / len(shifts) if shifts else None,
        "table": [{"old": one, "new": other, "n": count} for (one, other), count in sorted(sides.items())],
    }


def _vote(settled: Settled, principle_id: str | None) -> Vote | None:
    return next((v for v in settled.votes if v.principle_id == principle_id), None)


def _labels(redone: Sequence[Redone]) -> dict[str, Any]:
    table = Counter((each.old.label or each.old.state, each.new.label or each.new.state) for each in redone)
    n = len(redone)
    return {
        "flips": _share(table["a", "b"] + table["b", "a"], n),
        "moves": _share(sum(count for (one, other), count in table.items() if one != other), n),
        "table": [{"old": one, "new": other, "n": count} for (one, other), count in sorted(table.items())],
    }


def _rows(redone: Sequence[Redone], population: int) -> dict[str, Any]:
    """Return what becomes of training rows in the sample, and in the run if it is like the sample."""
    counted = Counter(each.row_change for each in redone)
    shares = {name: _share(counted[name], len(redone)) for name in ("gained", "lost", "reversed", "kept")}
    return {
        name: share and {
            **share, "in_run": [round(population * share[end]) for end in ("low", "value", "high")]
        }
        for name, share in shares.items()
    }  # fmt: skip


def _examples(redone: Sequence[Redone], preview: Preview) -> list[Redone]:
    """Return the flips worth reading: rows reversed, then lost or gained, then labels, then votes alone."""
    ranks = {"reversed": 0, "lost": 1, "gained": 1}

    def rank(each: Redone) -> int:
        return ranks.get(each.row_change, 2 if each.old.label != each.new.label else 3)

    return sorted((e for e in redone if _moved(e, preview) or rank(e) < 3), key=rank)[:_MOST_EXAMPLES]


def _moved(each: Redone, preview: Preview) -> bool:
    return any(side_of(old) != side_of(new) for _, old, new in _votes(each, preview))


def _votes(each: Redone, preview: Preview) -> Iterator[tuple[str, Vote | None, Vote | None]]:
    """Yield (name, old vote, new vote) of every changed principle that was due on either side."""
    for change in preview.difference.changed:
        votes = [_vote(s, p.id if p else None) for s, p in ((each.old, change.old), (each.new, change.new))]
        if any(votes):
            yield change.id, votes[0], votes[1]


def _example(each: Redone, preview: Preview) -> dict[str, Any]:
    a, b = each.end.arms
    return {
        "comparison": each.end.comparison.id,
        "phase": each.end.comparison.phase,
        "messages": [m.model_dump() for m in each.end.prompt.messages],
        "a": a.text,
        "b": b.text,
        "label": {
            side: {"label": s.label or s.state, "p_a": s.p_a} for side, s in (("old", each.old), ("new", each.new))
        },
        "row": each.row_change,
        "votes": [
            {"principle": name, "old": side_of(old), "new": side_of(new), "old_p_a": old.p_a if old else None,
             "new_p_a": new.p_a if new else None}
            for name, old, new in _votes(each, preview)
        ],
    }  # fmt: skip
