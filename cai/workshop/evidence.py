"""What people preferred: overrides that the judge did not foresee, or the rows of any preference set."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cai import canon
from cai.assay import labelled
from cai.records import Judgment, Prompt
from cai.stages.settle import effective_override, settle
from cai.trail import RunView


@dataclass(frozen=True, slots=True)
class Preferred:
    """Two answers to one prompt, and which of them a person preferred."""

    prompt: Prompt
    chosen: str
    rejected: str
    source: str
    """Where it comes from: the comparison's id, or the row's in its file."""


def disagreements(run: RunView) -> Iterator[Preferred]:
    """Yield the comparisons whose override in effect names an answer that the judge's own label does not name."""
    rules = run.config.judge
    for phase in run.phases:
        for end in run.ended(phase):
            held = effective_override(end.decisions)
            if held is None or held.label == "tie":
                continue
            judged = settle(
                end.comparison.id,
                [d for d in end.decisions if isinstance(d, Judgment)],
                run.due(end.comparison, end.prompt.domain),
                on_disagreement=rules.on_disagreement,
                tie_margin=rules.tie_margin,
            )
            if judged.label != held.label:
                a, b = (arm.text for arm in end.arms)
                chosen, rejected = (a, b) if held.label == "a" else (b, a)
                yield Preferred(end.prompt, chosen, rejected, end.comparison.id)


def preferences(path: Path) -> Iterator[Preferred]:
    """Yield the pairs of a labelled file, in any shape that `cai judge bench` reads; ties are left out.

    Raises UserError, as `labelled.read`.
    """
    for pair in labelled.read(path):
        if pair.label != "tie":
            chosen, rejected = (pair.text_a, pair.text_b) if pair.label == "a" else (pair.text_b, pair.text_a)
            yield Preferred(pair.prompt, chosen, rejected, pair.id)


def drawn(pairs: Iterable[Preferred], most: int, seed: int) -> list[Preferred]:
    """Return at most `most` pairs whose answers differ, each once, drawn by hash and in the order of the draw."""
    by_id = {}
    for pair in pairs:
        if pair.chosen.strip() != pair.rejected.strip():
            by_id.setdefault(canon.content_id("preferred", [pair.prompt.id, pair.chosen, pair.rejected]), pair)
    ordered = sorted(by_id.items(), key=lambda each: canon.unit_interval(seed, "evidence", each[0]))
    return [pair for _, pair in ordered[:most]]
