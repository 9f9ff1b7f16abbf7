"""From a request to a checkpoint, whatever the method: done already, half done, or to be trained now."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from accelerate import PartialState

from cai import canon
from cai.config import RewardSection, TrainerSection
from cai.errors import TrainError, UserError
from cai.model.fetch import resolve
from cai.model.folder import content_of
from cai.train import setup
from cai.train.admit import (
    check_base,
    check_examples,
    check_room,
    check_targets,
    rows_at_once,
    settle_sharding,
    sharding,
)
from cai.train.checkpoint import Folder
from cai.train.data import Example, Renderer, load_tokenizer, pair_set_id, tokenise, training_order
from cai.train.job import Job, OnStep, TrainResult, pick_device
from cai.train.rows import PairRow, load_pairs, load_sft
from cai.train.tripwires import ending
from cai.train.watch import Watch, drive

Build = Callable[[Job, Any], Any]
"""Makes a method's trainer from a job and the tokenizer."""


def train(
    method: str,
    build: Build,
    rows_path: str | Path,
    base: str,
    out: str | Path,
    settings: TrainerSection,
    *,
    seed: int = 0,
    device: str = "auto",
    dtype: str = "auto",
    trust_remote_code: bool = False,
    on_step: OnStep | None = None,
    manifest: dict[str, Any] | None = None,
    held_out: str | Path | None = None,
    stop: threading.Event | None = None,
    spec: Mapping[str, Any] | None = None,
) -> TrainResult:
    """Train `base` on the rows and return the checkpoint, which may have been there already.

    `base` is an embedded name, a local folder or a hub id; `manifest` is added to the checkpoint's manifest; `held_out`
    is a file of pairs that a reward model is measured on; `spec` tells where held-out prompts, constitution and judge
    are for the tripwires of the other methods (see cai.train.run). Raises UserError for input that cannot be used,
    TrainError where training cannot go on, Interrupted once `stop` is set.
    """
    began = time.monotonic()
    device = pick_device(device)
    spec, watch = spec or {}, getattr(settings, "watch", None)
    settle_sharding(method, writes=bool(watch), why=f" with train.{method}.watch")
    process = PartialState(cpu=device == "cpu")
    rows_at_once(settings, process.num_processes)
    rows = load_sft(rows_path) if method == "sft" else load_pairs(rows_path)
    seen = setup.held_out_rows(watch, spec)
    path = resolve(base)
    check_base(path)
    check_targets(settings, path, trust_remote_code=trust_remote_code)
    fingerprint = {
        "method": method,
        "base": base,
        "base_id": content_of(path),
        "trust_remote_code": trust_remote_code,
        "settings": settings.model_dump(mode="json"),
        "rows_id": _id_of(Path(rows_path)),
        "pair_set_id": pair_set_id([row.id for row in rows]),
        "seed": seed,
    }
    kept_out = load_pairs(held_out) if held_out else []
    if isinstance(settings, RewardSection) and not held_out:
        rows, kept_out = _split(rows, settings.held_out)
    if held_out or seen:
        fingerprint["held_out_id"] = _id_of(Path(held_out or spec["held_out"]))
    folder = Folder(Path(out), fingerprint)
    with ExitStack() as stack:
        if process.is_main_process:
            stack.enter_context(folder.owned())
        referees = setup.find_referees(watch, spec, (), setup.calls(folder.out))
        stack.callback(setup.close_all, referees)
        if watch:
            folder.fingerprint["referees"] = {source.name: getattr(source, "id", None) for source in referees}
        if done := folder.finished():
            return TrainResult(folder.out / done["kind"], done, reused=True)
        tokenizer = load_tokenizer(path, trust_remote_code=trust_remote_code)
        renderer = Renderer(tokenizer)
        examples, dropped = tokenise(rows, renderer, settings.max_length)
        check_examples(examples, path, settings, trust_remote_code=trust_remote_code)
        measured = _measured(kept_out, renderer, settings.max_length, held_out)
        looked_at = setup.find_held_out(settings, seen, renderer, None, referees, seed) if watch else None
        if looked_at:
            asked = [(row.id, len(ids)) for row, ids in looked_at.prompts]
            check_room(asked, path, looked_at.max_new_tokens, trust_remote_code=trust_remote_code)
        resume, precision = setup.open_state(folder, method, dtype, device)
        job = Job(
            folder=folder,
            base=path,
            settings=settings,
            examples=examples,
            order=training_order([e.n_tokens for e in examples], settings.epochs, settings.micro_batch_size, seed),
            seed=seed,
            device=device,
            dtype=precision,
            on_step=on_step,
            stop=stop or threading.Event(),
            resume=resume,
            trust_remote_code=trust_remote_code,
        )
        trainer = build(job, tokenizer)
        watcher = Watch(trainer, watch, looked_at, renderer) if watch else None
        drive(job, trainer, watcher)
        tripped = ending(watcher.trip, watch, trainer.state.global_step, watcher.roll_back) if watcher else None
        if measured:
            trainer.held_out(measured, folder.out)
        part = _save_weights(job, trainer)
        said = {
            **(manifest or {}),
            **_curve_ends(folder.curve),
            **trainer.facts(),
            "n_rows": len(rows),
            "n_held_out": len(measured),
            "dropped": dropped,
            "steps": trainer.state.global_step,
            "tripped": tripped,
            "sharding": sharding(),
            "device": device,
            "dtype": job.dtype,
            "wall_s": round(time.monotonic() - began, 1),
        }
        if process.is_main_process:
            said = folder.finish(job.kind, part, said)
        process.wait_for_everyone()
    return TrainResult(folder.out / job.kind, said, reused=False)


def _split(rows: list[PairRow], share: float) -> tuple[list[PairRow], list[PairRow]]:
    """Return the rows to train on and those to measure on; all rows of a prompt fall on one side, whatever the seed."""
    sides: tuple[list[PairRow], list[PairRow]] = ([], [])
    for row in rows:
        sides[canon.unit_interval("reward held out", canon.content_id("prompt", row.prompt)) < share].append(row)
    return sides if sides[0] else (rows, [])


def _measured(rows: Sequence[PairRow], renderer: Renderer, max_length: int, file: str | Path | None) -> list[Example]:
    """Return the held-out rows that fit. Raises UserError where a file was named for them and none of its rows does."""
    try:
        return tokenise(rows, renderer, max_length)[0] if rows else []
    except TrainError as error:
        if file is None:
            return []
        raise UserError(f"held_out, {file}: {error}") from error


def _id_of(rows: Path) -> str:
    """Return the content id of a file of rows, or of the files of a saved dataset."""
    files = sorted(rows.rglob("*.arrow")) if rows.is_dir() else [rows]
    return canon.id_of_files(*files)


def _save_weights(job: Job, trainer: Any) -> Path:
    """Write the trained weights into a hidden folder of OUT and return it."""
    part = job.folder.out / f".{job.kind}.part"
    if trainer.is_world_process_zero():
        shutil.rmtree(part, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(part))
    trainer.accelerator.wait_for_everyone()
    return part


def _curve_ends(curve: Path) -> dict[str, float | None]:
    rows = [json.loads(line) for line in curve.read_text(encoding="utf-8").splitlines()]
    losses = [row["loss"] for row in rows if row["step"]]
    return {"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}
