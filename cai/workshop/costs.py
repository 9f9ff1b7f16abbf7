"""What an edit would make a run do again, and what that would cost. What is not known is None and never nought."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cai import canon
from cai.config import Phase
from cai.constitution import Principle
from cai.records import Comparison, Prompt
from cai.stages.critique import draw
from cai.stages.judge import Bench
from cai.stages.judge.counting import Calls, calls_of
from cai.trail import RunView
from cai.workshop.difference import Difference


def relabel(
    owed: Mapping[str, int],
    sampled: Mapping[str, int],
    run: RunView,
    asked: Mapping[str, Any],
    bench: Bench,
    difference: Difference,
) -> dict[str, Any]:
    """Return the cost of a full re-label: decisions by principle, calls, tokens, and seconds at the sample's speed.

    `owed` are the decisions of the judge model that it has to make, `sampled` those of them that the sample has made;
    they are kept and not paid for twice, nor is what a principle was asked under another id. Calls are exact, except
    that after two reasonings of the same words one question is asked.
    """
    kept = set(_asked_before(run, bench, difference))
    left = {name: 0 if name in kept else n - sampled.get(name, 0) for name, n in owed.items()}
    by_id = {p.id: p for p in bench.principles}
    calls = sum(n * _calls([by_id[id_]], bench).most // len(bench.orders(by_id[id_])) for id_, n in left.items())
    tokens_each = asked["tokens"] / asked["made"] if asked["made"] else _mean_tokens(run, "score", "n_prompt")
    speed = asked["made"] / asked["seconds"] if asked["made"] and asked["seconds"] else None
    return {
        "decisions": dict(owed),
        "decisions_left": left,
        "calls": calls,
        "tokens": None if tokens_each is None else round(calls * tokens_each),
        "seconds": 0.0 if calls == 0 else None if speed is None else round(calls / speed, 1),
    }


def _asked_before(run: RunView, bench: Bench, difference: Difference) -> Iterator[str]:
    """Yield the principles that were renamed and ask the very same of the very same comparisons.

    Reasons are drawn anew under another id, and so are the principles where not all are asked.
    """
    if bench.settings.principles != "all" or any(seat.mode == "cot" for seat in bench.seated(None)):
        return
    for new, old in difference.renamed.items():
        before, after = run.bench.question(difference.old[old]), bench.question(difference.new[new])
        same_prompts = difference.old[old].domains == difference.new[new].domains
        if same_prompts and before == after.model_copy(update={"principle_id": old}):
            yield new


def _calls(principles: Sequence[Principle], bench: Bench) -> Calls:
    return calls_of(principles, bench.seated(None), bench.settings)


def _mean_tokens(run: RunView, kind: str, field: str) -> float | None:
    row = run.connection.execute(
        "SELECT avg(coalesce(json_extract(reply, ?), 0)) FROM calls WHERE kind = ?", (f"$.{field}", kind)
    ).fetchone()
    return row[0] if row else None


# -- critiques and revisions -------------------------------------------------------------------------------------------


@dataclass
class _Count:
    """What would be written again, at most."""

    chains: int = 0
    critiques: int = 0
    revisions: int = 0
    comparisons: int = 0
    calls: int = 0
    """Requests that judging those comparisons takes."""


def regenerated(run: RunView, difference: Difference, bench: Bench) -> dict[str, Any]:
    """Return what the edit would make the run write again, at most: critiques, revisions and what compares them.

    `calls` are the judge's, for those comparisons under the new text, whose questions `bench` holds.

    Principles are drawn by hash, so every draw under the new text is known before anything is asked. From the first
    round that draws differently, or draws a changed text, the whole chain is written again.
    """
    counted, of = _Count(), Counter[str]()
    for name, phase in phases_of(run):
        if not phase.revisions:
            continue
        seed = canon.seed_of(run.config.run.seed, name)
        for _, prompt in run.prompts("train"):
            for sample in range(phase.samples):
                if _chain(prompt, sample, phase, seed, difference, counted, of):
                    judged = _calls(_asked_about(prompt, name, bench), bench)
                    counted.calls += judged.most + 2 * judged.reward_models
    asked = counted.critiques + counted.revisions
    tokens = _mean_tokens(run, "generate", "n_completion")
    return {
        "chains": counted.chains,
        "critiques": counted.critiques,
        "revisions": counted.revisions,
        "comparisons": counted.comparisons,
        "calls": counted.calls,
        "because_of": dict(of.most_common()),
        "tokens": None if tokens is None else round(asked * tokens),
    }


def phases_of(run: RunView) -> Iterator[tuple[str, Phase]]:
    """Yield the phases that have begun, with the part of the config they came from; in round 2 `rl` is `rl-2`."""
    for name in run.phases:
        section = next((p for p in run.config.phases if name in (p.name, f"{p.name}-{name.rpartition('-')[2]}")), None)
        if section is not None:
            yield name, section


def _chain(
    prompt: Prompt, sample: int, phase: Phase, seed: int, difference: Difference, counted: _Count, of: Counter[str]
) -> bool:
    """Count one chain; return whether it gives a comparison anew."""
    sides = [_draws(c.principles, prompt, sample, phase, seed) for c in (difference.old, difference.new)]
    first = next((i for i, (old, new) in enumerate(zip(*sides, strict=True)) if _said(old) != _said(new)), None)
    if first is None:
        return False
    drawn = sides[1][first:]
    of[drawn[0].id if drawn[0] else "(none drawn)"] += 1
    counted.chains += 1
    counted.critiques += sum(p is not None and p.check is None for p in drawn)
    counted.revisions += sum(p is not None for p in drawn)
    counted.comparisons += "revision" in phase.pairs
    return "revision" in phase.pairs


def _asked_about(prompt: Prompt, phase: str, bench: Bench) -> list[Principle]:
    """Return the principles asked about a comparison not made yet; where they are drawn, as many of them."""
    stand_in = Comparison(phase=phase, prompt_id=prompt.id, a_id="a", b_id="b", source="revision")
    return bench.chosen(stand_in, prompt.domain)


def _draws(
    principles: Sequence[Principle], prompt: Prompt, sample: int, phase: Phase, seed: int
) -> list[Principle | None]:
    rounds = range(1, phase.revisions + 1)
    return [draw(principles, prompt, sample_index=sample, round=round_, seed=seed) for round_ in rounds]


def _said(principle: Principle | None) -> Any:
    """Return what the critic and the reviser are given by a principle."""
    if principle is None:
        return None
    if principle.check is not None:
        return principle.id_of("check"), principle.part_ids.get("revision")
    # A principle without a critique text is asked about by its title.
    return principle.part_ids.get("critique", principle.title), principle.part_ids.get("revision")
