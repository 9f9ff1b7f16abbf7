"""Training sets from several sources: split by prompt, cleaned, mixed in stated proportions, every row accounted for.

Each kind of set (preference, SFT, safety) is written and versioned by content id on its own. A row that was read ends
in exactly one place: unusable, duplicate, held out, dropped for a reason, not drawn (its source's share was full), or
trained on. The counts add up, which is asserted.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai import canon, promptset, shipped
from cai.errors import UserError
from cai.manifest import write_atomically
from cai.records import Message, Prompt
from cai.train import filters
from cai.train.files import DataFile, DataSource
from cai.train.rows import Hub, PairRow, SftRow, load_hh, load_pairs, load_sft

ENDS = ("unusable", "duplicate", "held_out", "dropped", "not_drawn", "train")
"""Where a row can end."""


@dataclass
class Item:
    """A row on its way."""

    source: DataSource
    row: PairRow | SftRow
    prompt: Prompt
    end: str = "train"
    reason: str | None = None

    @property
    def texts(self) -> list[str]:
        """What it says, the answer to learn first."""
        said = [m["content"] for m in self.row.prompt]
        if isinstance(self.row, SftRow):
            return [self.row.completion, *said]
        return [self.row.chosen, self.row.rejected, *said]

    @property
    def body(self) -> dict[str, Any]:
        """Return the row as the file of its set holds it."""
        if isinstance(self.row, SftRow):
            told = {"prompt": self.row.prompt, "completion": self.row.completion, "id": self.row.id}
        else:
            told = self.row.as_dict()
        return {**told, "source": self.source.name}

    def leave(self, end: str, reason: str | None = None) -> None:
        """Note where it ends, unless it has ended before."""
        if self.end == "train":
            self.end, self.reason = end, reason


@dataclass
class Built:
    """What a data file gave."""

    out: Path
    """The folder that was written."""
    sets: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By kind: content ids and row counts of the training and the held-out part, and the sources' shares."""
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    """By source: rows read, and how many ended where."""
    reasons: dict[str, dict[str, int]] = field(default_factory=dict)
    """By source: why rows were unusable or dropped."""

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON can say it."""
        return {"out": str(self.out), "sets": self.sets, "counts": self.counts, "reasons": self.reasons}


def build(file: DataFile, near: Path | None = None) -> Built:
    """Write the sets that a data file asks for and return what became of every row.

    Raises UserError for sources that cannot be read, and where a share cannot be filled or a set would be empty.
    """
    items: list[Item] = []
    counts: dict[str, Counter[str]] = {}
    reasons: dict[str, Counter[str]] = defaultdict(Counter)
    for source in file.sources:
        rows, unusable = _read(source, near)
        items += [Item(source, row, _prompt_of(row)) for row in rows]
        counts[source.name] = Counter(unusable=sum(unusable.values()))
        reasons[source.name].update({f"unusable: {why}": n for why, n in unusable.items()})
    n_read = {name: sum(i.source.name == name for i in items) + count["unusable"] for name, count in counts.items()}
    _fold_duplicates(items)
    _hold_out(items, file)
    _clean(items, file, near)
    for kind in sorted({source.kind for source in file.sources}):
        _draw([i for i in items if i.source.kind == kind and i.end == "train"], kind, file)
    for item in items:
        counts[item.source.name][item.end] += 1
        if item.reason:
            reasons[item.source.name][f"{item.end}: {item.reason}"] += 1
    assert all(sum(counts[name].values()) == n for name, n in n_read.items())
    built = Built(Path(file.out))
    built.counts = {name: {"read": n_read[name], **{e: counts[name][e] for e in ENDS}} for name in counts}
    built.reasons = {name: dict(sorted(why.items())) for name, why in reasons.items()}
    _write(built, items, file)
    return built


def _read(source: DataSource, near: Path | None) -> tuple[list[Any], dict[str, int]]:
    place = Hub(source.dataset, source.split) if source.dataset else shipped.find(str(source.path), near=near)
    if source.format == "hh-rlhf":
        if source.kind == "sft":
            raise UserError(f"source '{source.name}': hh-rlhf transcripts are preferences; set kind: preference")
        return load_hh(place)
    return (load_sft(place) if source.kind == "sft" else load_pairs(place)), {}


def _prompt_of(row: PairRow | SftRow) -> Prompt:
    return Prompt(messages=tuple(Message(**m) for m in row.prompt), domain="general", source_id=None)


def _fold_duplicates(items: list[Item]) -> None:
    """Keep each prompt with the same answers once within a kind: the first."""
    seen: set[str] = set()
    for item in items:
        answers = [item.row.completion] if isinstance(item.row, SftRow) else [item.row.chosen, item.row.rejected]
        key = canon.content_id("row", [item.source.kind, item.row.prompt, sorted(answers)])
        if key in seen:
            item.leave("duplicate")
        seen.add(key)


def _hold_out(items: list[Item], file: DataFile) -> None:
    """Set aside the rows of a share of the prompts. One prompt's rows stay together, whatever their kind."""
    prompts = {item.prompt.id: item.prompt for item in items}
    _, held_out = promptset.split(prompts.values(), file.held_out, salt=str(file.seed))
    ids = {prompt.id for prompt in held_out}
    for item in items:
        if item.prompt.id in ids:
            item.leave("held_out")


def _clean(items: list[Item], file: DataFile, near: Path | None) -> None:
    """Drop what resembles an evaluation prompt, holds personal data, or would teach an offensive answer."""
    left = [item for item in items if item.end == "train"]
    guarded = {"held-out prompts": list({i.prompt.id: i.prompt for i in items if i.end == "held_out"}.values())}
    for source in file.keep_out:
        guarded[source.path or source.dataset or ""] = list(promptset.load([source], near=near).prompts)
    prompts = {item.prompt.id: item.prompt for item in left}
    for name, kept_out in guarded.items():
        near_ones = promptset.overlaps(prompts.values(), kept_out, file.near_duplicate) if kept_out else {}
        for item in left:
            if item.prompt.id in near_ones:
                item.leave("dropped", f"near duplicate of {name}")
    if file.pii == "drop":
        for item in left:
            if item.end == "train":
                found = next(filter(None, map(filters.personal, item.texts)), None)
                if found:
                    item.leave("dropped", f"personal data: {found}")
    if file.toxicity is not None:
        left = [item for item in left if item.end == "train"]
        for item, p in zip(left, filters.offensive([item.texts[0] for item in left]), strict=True):
            if p >= file.toxicity:
                item.leave("dropped", "offensive answer")


def _draw(items: list[Item], kind: str, file: DataFile) -> None:
    """Take of each source as many rows as its share allows, chosen by hash."""
    shares = {s.name: s.share for s in file.sources if s.kind == kind and s.share is not None}
    if not shares:
        return
    whole = sum(shares.values())
    there = Counter(item.source.name for item in items)
    most = min(there[name] * whole / share for name, share in shares.items())
    wanted = {name: (file.rows or most) * share / whole for name, share in shares.items()}
    for name, n in wanted.items():
        if round(n) > there[name] or not round(n):
            raise UserError(
                f"source '{name}': {there[name]} rows are left, but its share of the {kind} set asks for "
                f"{round(n)}; lower rows (at most {int(most)}), or change the shares"
            )
    for name, n in wanted.items():
        ranked = sorted((i for i in items if i.source.name == name), key=lambda i: _rank(i, file.seed))
        for item in ranked[round(n) :]:
            item.leave("not_drawn")


def _rank(item: Item, seed: int) -> float:
    return canon.unit_interval("draw", seed, item.source.name, item.row.id)


def _write(built: Built, items: list[Item], file: DataFile) -> None:
    for kind in sorted({source.kind for source in file.sources}):
        entry: dict[str, Any] = {}
        for part in ("train", "held_out"):
            rows = [item for item in items if item.source.kind == kind and item.end == part]
            if part == "train" and not rows:
                raise UserError(
                    f"no {kind} row is left to train on; see what each filter takes: loosen the filters, or "
                    "hold out less"
                )
            content = b"".join(canon.dumps(item.body) + b"\n" for item in rows)
            write_atomically(built.out / f"{kind}.{part}.jsonl", content)
            by_source = Counter(item.source.name for item in rows)
            entry[part] = {"id": canon.id_of_bytes(content), "rows": len(rows), "by_source": dict(by_source)}
        built.sets[kind] = entry
    told = {"schema": 1, "file": file.model_dump(mode="json"), **built.as_dict()}
    write_atomically(built.out / "data.json", canon.dumps(told))
