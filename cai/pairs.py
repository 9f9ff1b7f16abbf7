"""Training rows from what a run has settled: preference pairs, SFT rows, and where each row came from.

`pairs.jsonl` is TRL's conversational preference format with `p_chosen` and `p_tie`; line n of `provenance.jsonl` tells
which decisions stand behind line n of it. Both are byte-identical for the same decisions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import re2

from cai import canon, checks
from cai.config import SAMPLING
from cai.manifest import writing
from cai.records import Critique, PreferencePair, Prompt
from cai.stages.admit import Accounting, total
from cai.stages.respond import opening
from cai.trail import Ended, RunView


def row(pair: PreferencePair) -> dict[str, Any]:
    """Return a pair as TRL reads it."""
    return {
        "prompt": [m.model_dump() for m in pair.prompt],
        "chosen": [{"role": "assistant", "content": pair.chosen}],
        "rejected": [{"role": "assistant", "content": pair.rejected}],
        "p_chosen": round(pair.p_chosen, 6),
        "p_tie": round(pair.p_tie, 6),
    }


def provenance(end: Ended, pair: PreferencePair, line: int) -> dict[str, Any]:
    """Return what stands behind line `line` (from 1) of the pairs file."""
    chosen_arm = "a" if end.settled.label != "b" else "b"
    ids = {"a": end.comparison.a_id, "b": end.comparison.b_id}
    return {
        "line": line,
        "pair_id": end.comparison.id,
        "phase": end.comparison.phase,
        "prompt_id": end.prompt.id,
        "prompt_source_id": end.prompt.source_id,
        "domain": end.prompt.domain,
        "source": end.comparison.source,
        "chosen_id": ids[chosen_arm],
        "rejected_id": ids["b" if chosen_arm == "a" else "a"],
        "chosen_arm": chosen_arm,
        "label_source": pair.label_source,
        "override_id": end.settled.override_id,
        "confidence": round(pair.confidence, 6),
        "votes": [
            {
                "principle": v.principle_id,
                "weight": v.weight,
                "stand": v.stand,
                "p_a": None if v.p_a is None else round(v.p_a, 6),
                "judgments": list(v.judgment_ids),
            }
            for v in end.settled.votes
        ],
    }


def export(run: RunView, out: Path, *, phases: Iterable[str] | None = None) -> Accounting:
    """Write the pairs of these phases (None: all) to `out` and their provenance beside it; return the accounting."""
    return total(list(export_by_phase(run, out, phases=phases).values()))


def export_by_phase(run: RunView, out: Path, *, phases: Iterable[str] | None = None) -> dict[str, Accounting]:
    """As `export`, row by row; return the accounting of every phase by its name."""
    parts, n_rows = {}, 0
    with writing(out) as rows, writing(provenance_path(out)) as origins:
        for phase in phases if phases is not None else run.phases:
            parts[phase] = counted = Accounting()
            for end in run.ended(phase):
                counted.count(end.admission)
                if end.admission.pair is not None:
                    n_rows += 1
                    rows.write(canon.dumps(row(end.admission.pair)) + b"\n")
                    origins.write(canon.dumps(provenance(end, end.admission.pair, n_rows)) + b"\n")
            counted.as_dict()  # asserts that it adds up
    return parts


def provenance_path(pairs: Path) -> Path:
    """Return where the provenance of a pairs file lies: `provenance.jsonl` beside `pairs.jsonl`."""
    stem = pairs.name.removesuffix(".jsonl")
    return pairs.with_name("provenance.jsonl" if stem == "pairs" else f"{stem}.provenance.jsonl")


def sft_rows(run: RunView, phase: str) -> Iterator[dict[str, Any]]:
    """Yield the SFT rows of a phase: the revisions of every round (Bai et al. 2022, §3.1), in order.

    An answer whose check found nothing to revise is its own revision. With `train.sft.rows: passing`, only texts that
    every programmatic principle passes. Cut, empty and boilerplate texts are left out in either case, and revisions
    that repeat the critique, the request or the question they follow: weak models answer the request instead of the
    user, and training on that is how published runs have collapsed.
    """
    boilerplate = [re2.compile(pattern) for pattern in run.config.pairs.boilerplate]
    only_passing = run.config.train.sft.rows == "passing"
    for _, prompt in run.prompts("train"):
        records = run.records(phase, prompt.id)
        critiques = {c.id: c for c in records.get("critique", [])}
        left_alone = {c.answer_id for c in critiques.values() if c.passed}
        clean = [r for r in records.get("revision", []) if not _echoes(r.text, run, critiques[r.critique_id], prompt)]
        answers = [r for r in records.get("response", []) if r.id in left_alone] + clean
        seen: set[str] = set()
        for answer in sorted(answers, key=lambda r: r.id):
            text = answer.text.strip()
            unclean = answer.finish_reason == "length" or any(p.search(text) for p in boilerplate)
            if not text or text in seen or unclean or (only_passing and not passes_all(run, text, prompt.domain)):
                continue
            seen.add(text)
            messages = [m.model_dump() for m in prompt.messages]
            yield {"prompt": messages, "completion": text, "id": answer.id}


def _echoes(text: str, run: RunView, critique: Critique, prompt: Prompt) -> bool:
    """Return whether a revision repeats five words in a row of its critique or of the request, or is the question."""
    principle = run.constitution[critique.principle_id]
    asked = [turn.text for turn in run.templates["revision"].turns(request=principle.revision, question="")]
    around = {words for source in (critique.text, *asked) for words in _runs_of_words(source)}
    written, question = _runs_of_words(text), _runs_of_words(prompt.messages[-1].content)
    return not around.isdisjoint(written) or 2 * len(question & written) > len(written)


def _runs_of_words(text: str, n: int = 5) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", text.lower())
    return {tuple(words[i : i + n]) for i in range(len(words) - n + 1)}


def passes_all(run: RunView, text: str, domain: str) -> bool:
    """Return whether every programmatic principle that applies passes the text."""
    return all(
        checks.run(p.check, text).passed
        for p in run.constitution.principles
        if p.check is not None and p.applies_to(domain)
    )


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write rows as JSON lines, atomically; return how many."""
    n_rows = 0
    with writing(path) as file:
        for row in rows:
            file.write(canon.dumps(row) + b"\n")
            n_rows += 1
    return n_rows


def phase_rows(run: RunView, phase: str, method: str) -> Iterator[dict[str, Any]]:
    """Yield the rows a phase trains on as they stand now."""
    if method == "sft":
        yield from sft_rows(run, phase)
    elif method in SAMPLING:
        yield from prompt_rows(run, "train")
    else:
        for end in run.ended(phase):
            if (pair := end.admission.pair) is not None:
                yield row(pair) | (_origin(end, pair) if method == "reward" else {})


def _origin(end: Ended, pair: PreferencePair) -> dict[str, Any]:
    """Return what a reward model can use beside the label: each principle's probability that `chosen` is better."""
    is_a = end.settled.label != "b"
    votes = {v.principle_id: v.p_a for v in end.settled.votes if v.p_a is not None and v.stand == "votes"}
    shares = {name: round(p_a if is_a else 1 - p_a, 6) for name, p_a in votes.items()}
    return {"pair_id": end.comparison.id, "label_source": pair.label_source, "votes": shares}


def prompt_rows(run: RunView, side: str) -> Iterator[dict[str, Any]]:
    """Yield the prompts of a side (`train` or `held_out`) as a training that samples reads them, in order."""
    for _, prompt in run.prompts(side):
        yield {
            "id": prompt.id,
            "prompt": [{"role": t.role, "content": t.text} for t in opening(prompt, run.config.respond.system)],
            "domain": prompt.domain,
        }


def rows_id(rows: Iterable[dict[str, Any]]) -> str:
    """Return the content id of rows: what a checkpoint names as the set it was trained on."""
    return canon.id_of_parts(canon.dumps(r) + b"\n" for r in rows)


def stale_checkpoints(run: RunView) -> list[str]:
    """Return the checkpoints of a run whose rows have changed since they were trained."""
    stale = []
    for phase, entry in run.manifest["phases"].items():
        trained = entry.get("train")
        if trained and trained["rows_id"] != rows_id(phase_rows(run, phase, trained["method"])):
            stale.append(str(run.folder / "checkpoints" / phase))
    return stale
