"""A few answers side by side, drawn by hash and not by taste."""

from __future__ import annotations

from heapq import nsmallest
from typing import Any

from cai import canon, checks
from cai.config import RunConfig
from cai.constitution import Constitution
from cai.evaluate import answers
from cai.records import Prompt, Response, Revision
from cai.trail import Ended, RunView

_LONGEST = 2500
"""So many characters of an answer or of a turn of the prompt are shown."""


def choose(run: RunView) -> dict[str, Any] | None:
    """Return examples of the first and the last policy on held-out prompts, or else of the last phase's comparisons.

    They are drawn by a hash of (seed, prompt), so nobody chose them, and the same run shows the same ones.
    """
    wanted = run.config.evaluate.examples
    if not wanted:
        return None
    answered = [a for a in answers.read(run) if a.after]
    if answered:
        ends = {(e.comparison.a_id, e.comparison.b_id): e for e in run.ended("evaluate", side="held_out")}
        drawn = sorted(answered, key=lambda a: _draw(run.config, a.prompt.id))[:wanted]
        labels = ("before", "after")
        items = []
        for a in drawn:
            arms = (a.before[0], a.after[0])
            items.append(_item(run.constitution, a.prompt, labels, arms, ends.get((arms[0].id, arms[1].id))))
        return {"kind": "policies", "phase": "evaluate", "items": items}
    return _of_phase(run, wanted)


def _of_phase(run: RunView, wanted: int) -> dict[str, Any] | None:
    for phase in reversed(run.phases):
        draws = ((_draw(run.config, end.comparison.id), end) for end in run.ended(phase))
        drawn = [end for _, end in nsmallest(wanted, draws, key=lambda pair: pair[0])]
        if drawn:
            items = [_item(run.constitution, e.prompt, _labels(e), e.arms, e) for e in drawn]
            return {"kind": "comparisons", "phase": phase, "items": items}
    return None


def _draw(config: RunConfig, id_: str) -> float:
    return canon.unit_interval(config.run.seed, "example", id_)


def _labels(end: Ended) -> tuple[str, str]:
    if end.comparison.source == "revision":
        return "first answer", "revision"
    return "one sample", "another sample"


def _item(
    constitution: Constitution,
    prompt: Prompt,
    labels: tuple[str, str],
    arms: tuple[Response | Revision, Response | Revision],
    end: Ended | None,
) -> dict[str, Any]:
    sides = [_side(constitution, prompt, label, arm) for label, arm in zip(labels, arms, strict=True)]
    return {
        "prompt_id": prompt.id,
        "source_id": prompt.source_id,
        "domain": prompt.domain,
        "messages": [{"role": m.role, **_short(m.content)} for m in prompt.messages],
        "sides": sides,
        "verdict": _verdict(end, labels),
    }


def _side(constitution: Constitution, prompt: Prompt, label: str, answer: Response | Revision) -> dict[str, Any]:
    marks = [
        (p, checks.run(p.check, answer.text)) for p in constitution.for_domain(prompt.domain) if p.check is not None
    ]
    return {
        "label": label,
        **_short(answer.text),
        "words": checks.count_words(answer.text),
        "cut": answer.finish_reason == "length",
        "checks": [
            {"principle": p.id, "title": p.title, "passed": m.passed, "why": None if m.passed else m.sentence()}
            for p, m in marks
        ],
    }


def _short(text: str) -> dict[str, Any]:
    return {"text": text[:_LONGEST], "n_left_out": max(0, len(text) - _LONGEST)}


def _verdict(end: Ended | None, labels: tuple[str, str]) -> dict[str, Any] | None:
    """Return which side the settled label names, by whom, and how surely."""
    if end is None:
        return None
    label = end.settled.label
    return {
        "state": end.settled.state,
        "better": None if label is None else "tie" if label == "tie" else labels[label == "b"],
        "by": end.settled.label_source,
        "confidence": end.settled.confidence,
    }
