"""Prompts into the store: read, folded, split and guarded against leaks before anything is generated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cai import canon, promptset
from cai.config import RunConfig
from cai.errors import UserError
from cai.manifest import Manifest
from cai.records import Prompt
from cai.store.store import Store

_MARK = "prompts_id"


def ingest(config: RunConfig, near: Path | None, store: Store, manifest: Manifest) -> None:
    """Read the prompts into the store unless the same ones are there already, and count them in the manifest."""
    read = promptset.load(config.prompts.sources, near=near)
    train, held_out, leaks = divide(config, read.prompts)
    chosen = [*(p.id for p in train), "|", *(p.id for p in held_out)]
    mark = canon.content_id("prompts", chosen)
    if store.meta(_MARK) != mark:
        _keep(store, train, held_out, mark)
    manifest.save(prompts=_counts(read, train, held_out, leaks))


def divide(config: RunConfig, prompts: list[Prompt]) -> tuple[list[Prompt], list[Prompt], int]:
    """Return (train, held_out, leaks): the split by hash, the limits, and how many near duplicates were dropped."""
    section = config.prompts
    train, held_out = promptset.split(prompts, section.held_out, salt=str(config.run.seed))
    held_out = _limit(held_out, section.held_out_limit, config.run.seed)
    leaks = promptset.overlaps(train, held_out, section.near_duplicate)
    train = _limit([p for p in train if p.id not in leaks], section.train_limit, config.run.seed)
    if not train:
        raise UserError(f"prompts: {len(prompts)} read, none left for training; lower prompts.held_out, or add prompts")
    return train, held_out, len(leaks)


def _limit(prompts: list[Prompt], most: int | None, seed: int) -> list[Prompt]:
    """Return at most `most` prompts, chosen by hash so that the choice survives added prompts, in file order."""
    if most is None or len(prompts) <= most:
        return prompts
    chosen = sorted(prompts, key=lambda p: canon.unit_interval(seed, "limit", p.id))[:most]
    kept = {p.id for p in chosen}
    return [p for p in prompts if p.id in kept]


def _keep(store: Store, train: list[Prompt], held_out: list[Prompt], mark: str) -> None:
    store.clear_prompts()
    for side, prompts in (("train", train), ("held_out", held_out)):
        offset = 0 if side == "train" else len(train)
        for i, prompt in enumerate(prompts):
            store.put_prompt(offset + i, prompt, side)
    store.put_meta(_MARK, mark)
    store.flush()


def _counts(read: Any, train: list[Prompt], held_out: list[Prompt], leaks: int) -> dict[str, int]:
    return {
        "read": read.n_read,
        "duplicates_folded": read.n_duplicates,
        "leaks_dropped": leaks,
        "train": len(train),
        "held_out": len(held_out),
    }
