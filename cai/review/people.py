"""Where people's votes meet the judge's label: what overrides follow from them, and what the judge had said."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cai.manifest import now
from cai.records import Comparison, Event, Override, Withdrawal
from cai.review.book import Book
from cai.stages.settle import Settled, effective_override, settle
from cai.store import ledger
from cai.trail import RunView


def judged(run: RunView, comparison_id: str) -> Settled:
    """Return what the judge says of a comparison, overrides left aside."""
    comparison: Comparison = run.record(comparison_id)
    prompt = run.record(comparison.prompt_id)
    rules = run.config.judge
    return settle(
        comparison_id,
        [d for d in ledger.of_comparison(run.connection, comparison_id) if not isinstance(d, Override)],
        run.due(comparison, prompt.domain),
        on_disagreement=rules.on_disagreement,
        tie_margin=rules.tie_margin,
    )


def consequences(run: RunView, book: Book, comparison_id: str, author: str) -> Iterator[Event]:
    """Yield what must be appended so that the label follows from the votes as they stand.

    All who say which answer is better agree, and the judge says otherwise: an override. They no longer do: the
    override that followed from votes is withdrawn. An override that somebody decided outright is left alone.
    """
    held = book.override(comparison_id)
    if held is not None and not held.votes:
        return
    label, votes = book.agreed_label(comparison_id)
    if label is None or label == judged(run, comparison_id).label:
        if held is not None:
            yield Withdrawal(
                comparison_id=comparison_id,
                withdraws=held.id,
                author=author,
                reason="the votes no longer say otherwise than the judge",
                time=now(),
            )
    elif held is None or held.label != label:
        earlier = book.overrides.get(comparison_id, [])
        reasons = list(dict.fromkeys(v.reason for v in votes if v.reason))
        yield Override(
            comparison_id=comparison_id,
            label=label,
            author=", ".join(sorted({v.reviewer for v in votes})),
            reason="; ".join(reasons) or "voted in review",
            blind=all(v.blind for v in votes),
            supersedes=earlier[-1].id if earlier else None,
            votes=tuple(v.id for v in votes),
            time=now(),
        )


def what_the_judge_said(run: RunView, comparison_id: str, left: str) -> dict[str, Any]:
    """Return the judge's label, its principles' votes and where the answers come from, by the sides shown.

    `left` is the arm that stood on the left. Probabilities are P(left is better), 0 to 1, or None.
    """
    comparison: Comparison = run.record(comparison_id)
    said = judged(run, comparison_id)
    arms = {"a": run.record(comparison.a_id), "b": run.record(comparison.b_id)}
    titles = {p.id: p.title for p in run.constitution.principles}
    held = effective_override(ledger.of_comparison(run.connection, comparison_id))
    return {
        "label": side_of(said.label, left),
        "p_left": _p_left(said.p_a, left),
        "confidence": said.confidence,
        "state": said.state,
        "principles": [
            {
                "id": v.principle_id,
                "title": titles.get(v.principle_id, v.principle_id),
                "stand": v.stand,
                "p_left": _p_left(v.p_a, left),
            }
            for v in said.votes
        ],
        "source": comparison.source,
        "left_is": arms[left].tag,
        "right_is": arms["b" if left == "a" else "a"].tag,
        "label_now": side_of(held.label if held else said.label, left),
        "label_source": ("adjudicated" if held.settles else "human") if held else "judge",
    }


def side_of(label: str | None, left: str) -> str | None:
    """Return a label by sides: `left`, `right`, `tie`, or None."""
    if label in (None, "tie"):
        return label
    return "left" if label == left else "right"


def _p_left(p_a: float | None, left: str) -> float | None:
    return None if p_a is None else p_a if left == "a" else 1 - p_a
