"""What a card says, taken from the run's manifest, records and ledger. Nothing of this machine gets into it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from cai import __version__, canon, pairs
from cai.errors import UserError
from cai.evaluate.judging import together, weaknesses
from cai.model.fetch import EMBEDDED
from cai.records import PEOPLE
from cai.report import collect
from cai.report.words import plural
from cai.review import agreement
from cai.review.book import Book
from cai.stages.settle import effective_override
from cai.trail import RunView

Kind = Literal["model", "dataset"]
KINDS: tuple[Kind, ...] = ("model", "dataset")
_FEW_PROMPTS = 100


def gather(run: RunView, kind: Kind, *, phase: str | None = None, license_: str | None = None) -> dict[str, Any]:
    """Return the facts of a card. Raises UserError where the run has no such checkpoint, or no pairs.

    `phase` names the checkpoint (None: the last one trained); `license_` is what the owner puts it under.
    """
    data = collect(run.folder)
    facts = {
        "kind": kind,
        "run": data["run"] | {"name": _leaf(data["run"]["name"])},
        "cai_version": __version__,
        "constitution": data["constitution"] | {"path": None},
        "models": {role: public_name(identity) for role, identity in data["models"].items()},
        "sources": [_source(source) for source in run.config.prompts.sources],
        "prompts": data["prompts"],
        "phases": data["phases"],
        "accounting": data["accounting"],
        "evaluation": data["evaluation"],
        "judge": _judge(data),
        "people": people(run),
        "rows": _rows(run),
        "settings": _settings(run),
        "base": _base(run),
        "license": license_,
        "ledger": data["ledger"],
        "checkpoint": _checkpoint(run, phase) if kind == "model" else None,
    }
    if kind == "dataset" and not facts["rows"]["n"]:
        raise UserError(f"{run.folder}: this run has no preference pairs to describe; `cai pairs` shows why")
    return facts | {"limits": list(limits(facts))}


def trained_phases(run: RunView) -> list[str]:
    """Return the phases that left a policy's checkpoint, in order. A reward model is no policy."""
    trained = ((name, run.manifest["phases"][name].get("train")) for name in run.phases)
    return [name for name, entry in trained if entry and entry.get("method") != "reward"]


def public_name(name: str) -> str:
    """Return a model's name (of a panel, all names) without the folders it lies in here: of a path, its end."""
    rule, is_panel, members = name.partition(" of ")
    if is_panel and rule in ("mean", "majority"):
        parts = (member.partition(":") for member in members.split(" + "))
        return f"{rule} of " + " + ".join(f"{mode}:{public_name(identity)}" for mode, _, identity in parts)
    place, at, rest = name.partition("@")
    return _leaf(place) + at + rest if place.startswith(("/", "~", ".")) or place.count("/") > 1 else name


def _leaf(path: str) -> str:
    parts = [part for part in Path(path).parts if part not in ("/", "..", ".", "model")]
    return "/".join(parts[-2:]) if "checkpoints" in parts else (parts[-1] if parts else path)


def _base(run: RunView) -> dict[str, Any]:
    """Return the first policy: its public name, the Hub id to link to if it has one, and its licence if known."""
    section = run.config.models.policy
    name = section.checkpoint or section.served_name or "a served model"
    folder = Path(name).expanduser()
    on_hub = name.count("/") == 1 and not name.startswith((".", "/", "~")) and not folder.exists()
    return {
        "name": public_name(name),
        "hub_id": name if on_hub else None,
        "revision": section.revision,
        "own_code": section.trust_remote_code,
        "license": EMBEDDED[name].license if name in EMBEDDED else _license_in(folder / "README.md"),
    }


def _license_in(readme: Path) -> str | None:
    """Return the licence that a model folder's own card states, if it has one."""
    if not readme.is_file():
        return None
    lines = readme.read_text(encoding="utf-8", errors="replace").splitlines()
    front = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    found = [line.partition(":")[2].strip().strip("'\"") for line in front if line.startswith("license:")]
    return found[0] if found and found[0] else None


def _source(source: Any) -> dict[str, Any]:
    shipped = source.path is not None and source.path.startswith("prompts/sets/")
    name = source.dataset or (source.path if shipped else Path(source.path).name)
    return {"name": name, "split": source.split if source.dataset else None, "shipped": shipped}


def _judge(data: dict[str, Any]) -> dict[str, Any] | None:
    """Return how far the judge model agrees with itself, over all phases and the evaluation; None without one."""
    told = [(p["name"], p["judged"]["judge"]) for p in data["phases"] if p["judged"] and p["judged"]["judge"]]
    wins = (data["evaluation"] or {}).get("wins")
    if wins and wins["reliability"]["judge"]:
        told.append(("evaluation", wins["reliability"]["judge"]))
    if not told:
        return None
    whole = together(judge for _, judge in told)
    return {
        "name": public_name(whole.judged_by or told[0][1]["judged_by"]),
        "by_phase": [{"name": name, **judge} for name, judge in told],
        "weaknesses": weaknesses(whole),
    }


def people(run: RunView) -> dict[str, Any]:
    """Return how often people decided, and how often the judge says what they say.

    That is measured on the comparisons drawn at random for review, by labels given without sight of its verdict, as
    `cai review agreement` has it. What somebody decided outright was picked, as a rule for being wrong.
    """
    ended = (end for phase in run.phases for end in run.ended(phase))
    held = [found for end in ended if (found := effective_override(end.decisions))]
    book = Book(run.connection)
    drawn = agreement.reviewed(run, book, agreement.current_draw(book))
    accuracy = agreement.accuracy([r for r in drawn if r.item.principle_id is None])
    return {"decided": len(held), "blind": sum(found.blind for found in held), "accuracy": accuracy}


def _rows(run: RunView) -> dict[str, Any]:
    """Return what the pair set holds: how many rows by phase and label source, and its content id."""
    ids, by_phase, by_source = [], dict[str, int](), Counter[str]()
    for phase in run.phases:
        for end in run.ended(phase):
            if end.admission.pair is not None:
                ids.append(canon.content_id("pair_row", pairs.row(end.admission.pair)))
                by_phase[phase] = by_phase.get(phase, 0) + 1
                by_source[end.admission.pair.label_source] += 1
    return {
        "n": len(ids),
        "by_phase": by_phase,
        "human": sum(by_source[source] for source in PEOPLE),
        "adjudicated": by_source["adjudicated"],
        "id": canon.content_id("pair_set", sorted(ids)),
    }


def _settings(run: RunView) -> dict[str, Any]:
    config = run.config
    named = ("respond", "critique", "revise", "judge", "pairs")
    return {name: getattr(config, name).model_dump(mode="json") for name in named} | {"rounds": config.rounds}


def _checkpoint(run: RunView, phase: str | None) -> dict[str, Any]:
    trained = trained_phases(run)
    if not trained or (phase is not None and phase not in trained):
        found = f"phases with a checkpoint: {', '.join(trained)}" if trained else "this run has trained none"
        raise UserError(f"{run.folder}: no checkpoint{f' of phase {phase!r}' if phase else ''}; {found}")
    name = phase or trained[-1]
    path = run.folder / "checkpoints" / name / "checkpoint.json"
    manifest = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    entry = {**run.manifest["phases"][name]["train"], **manifest}
    named = ("method", "n_rows", "steps", "rows_id", "weights_id", "dtype", "device", "wall_s", "kind", "settings",
             "pair_set_id", "versions")  # fmt: skip
    told = {key: entry.get(key) for key in named}
    has_whole = (path.parent / "model").is_dir()
    return {
        "phase": name,
        "is_last": name == trained[-1],
        "has_whole": has_whole,
        "trained": trained[: trained.index(name) + 1],
        **told,
    }


def limits(facts: dict[str, Any]) -> Iterator[str]:
    """Yield what a reader must not expect, each from what the run did or did not measure."""
    evaluation, judge, told = facts["evaluation"] or {}, facts["judge"], facts["people"]
    if not facts["run"]["done"]:
        yield "The run was not finished when this card was written."
    if facts["run"]["stale"]:
        yield "Some checkpoints were trained on rows that later decisions have changed."
    yield from (f"Collapse check: {warning}." for warning in (evaluation.get("collapse") or {}).get("warnings", ()))
    if facts["base"]["own_code"]:
        yield "The base model is loaded by Python code that comes with it (trust_remote_code); read it before you do."
    if judge:
        yield from (f"{weakness[:1].upper()}{weakness[1:]}." for weakness in judge["weaknesses"])
    if not told["accuracy"]:
        yield (
            "No comparisons drawn at random were given people's blind labels, so how far the judge agrees with people "
            "is not known."
        )
    elif told["accuracy"]["n"] < _FEW_PROMPTS:
        yield f"The judge was compared with people on {plural(told['accuracy']['n'], 'comparison')} only."
    n_held_out = evaluation.get("n_prompts", 0)
    if not (evaluation.get("n_answers") or {}).get("after"):
        yield "No trained policy was evaluated on held-out prompts."
    elif n_held_out < _FEW_PROMPTS:
        rests = plural(n_held_out, "held-out prompt")
        yield f"The evaluation rests on {rests}; small changes cannot be told from chance."
    yield "Held-out prompts come from the same sources as the training prompts; other prompts may give other figures."
    yield "Refusals and openers are found by a short list of English patterns."
    yield "Nothing here shows that answers are true, safe or harmless; it shows which ones a judge or code preferred."
