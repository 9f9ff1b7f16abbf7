"""replay: every verdict read again from the reply that was kept, every label folded again. No model is asked."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import Any

from cai import canon
from cai.constitution import Principle
from cai.pairs import provenance, provenance_path, row
from cai.records import Judgment, Question
from cai.stages.judge import Case, by_check, reread
from cai.store.calls import Answer
from cai.store.store import find_replies
from cai.trail import Ended, RunView


def replay(run: RunView) -> dict[str, Any]:
    """Return how much was replayed and every difference: `judgments`, `by_code`, `pairs`, `not_replayable`,
    `differences`.

    Differences are a verdict that its kept reply does not give, a count that the manifest tells otherwise, and a line
    of the pairs file that the decisions do not give.
    """
    differences: list[dict[str, str]] = []
    counts = {"judgments": 0, "by_code": 0, "pairs": 0, "not_replayable": 0}
    principles = {
        p.id_of(part): p for p in run.constitution.principles for part in ("check", "rubric") if part in p.part_ids
    } | {run.bench.question(p).text_id: p for p in run.constitution.principles}
    rows: list[bytes] = []
    origins: list[bytes] = []
    for phase, side in [*((p, "train") for p in run.phases), ("evaluate", "held_out")]:
        for end in run.ended(phase, side=side):
            counts["pairs"] += 1
            for judgment in (d for d in end.decisions if isinstance(d, Judgment)):
                again = _again(run, end, judgment, principles)
                if again is None:
                    counts["not_replayable"] += 1
                    continue
                counts["judgments"] += 1
                counts["by_code"] += judgment.call_key is None
                if isinstance(again, str):
                    differences.append({"where": "decision", "name": judgment.id, "what": again})
            if end.admission.pair is not None and side == "train":
                rows.append(canon.dumps(row(end.admission.pair)))
                origins.append(canon.dumps(provenance(end, end.admission.pair, len(rows))))
    differences += _files(run, rows, origins)
    return {"run": str(run.folder), **counts, "differences": differences}


def _again(run: RunView, end: Ended, judgment: Judgment, principles: dict[str, Principle]) -> str | bool | None:
    """Return True where the judgment comes out the same, else what differs; None where it cannot be read again."""
    question = run.questions.get(judgment.question_id)
    if question is None:
        return "its question is missing"
    made = _made(run, end, judgment, question, principles)
    if made is None or isinstance(made, str):
        return made
    if made.id == judgment.id:
        return True
    return f"kept {judgment.verdict} (p_a {judgment.p_a}), read again {made.verdict} (p_a {made.p_a})"


def _made(
    run: RunView, end: Ended, judgment: Judgment, question: Question, principles: dict[str, Principle]
) -> Judgment | str | None:
    if question.settings_id not in ("", run.bench.settings_id):
        return None  # made under other settings, which the run no longer has
    principle = principles.get(question.text_id)
    if question.mode == "check":
        case = Case(end.comparison, end.prompt, end.arms[0].text, end.arms[1].text)
        return by_check(case, principle, question) if principle is not None else None

    def kept(key: str) -> Answer:
        found = find_replies(run.connection, [key])[key]
        return Answer(key, found.reply(), canon.id_of_bytes(canon.dumps(found.reply().content())))

    try:
        return reread(judgment, end.comparison, question, run.config.judge, kept, principle)
    except KeyError:
        return "the call it was read from is missing"
    except ValueError:
        return None  # a rubric that is no longer in the run


def _files(run: RunView, rows: list[bytes], origins: list[bytes]) -> Iterator[dict[str, str]]:
    path = run.folder / "pairs.jsonl"
    for file, wanted in ((path, rows), (provenance_path(path), origins)):
        found = file.read_bytes().splitlines() if file.exists() else []
        if not file.exists() and not run.manifest.get("done"):
            continue
        for number, (one, other) in enumerate(zip_longest(found, wanted), 1):
            if one != other:
                what = "is one too many" if not other else "is missing" if not one else "is not what the decisions give"
                what += "; if people decided since, `cai pairs` writes it anew"
                yield {"where": file.name, "name": f"line {number}", "what": what}
