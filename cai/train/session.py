"""From a request to a checkpoint, whatever the method: done already, half done, or to be trained now."""

from __future__ import annotations

import json
import pickle
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import PrinterCallback, ProgressCallback

from cai import canon
from cai.config import TrainerSection
from cai.errors import TrainError
from cai.model.fetch import resolve
from cai.train.checkpoint import Folder, content_of
from cai.train.data import Renderer, load_pairs, load_sft, load_tokenizer, pair_set_id, tokenise, training_order
from cai.train.job import Interrupted, Job, OnStep, TrainResult, pick_device, pick_dtype
from cai.train.trainer import Progress

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
    on_step: OnStep | None = None,
    manifest: dict[str, Any] | None = None,
    stop: threading.Event | None = None,
) -> TrainResult:
    """Train `base` on the rows and return the checkpoint, which may have been there already.

    `base` is an embedded name, a local folder or a hub id; `manifest` is added to the checkpoint's manifest. Raises
    UserError for input that cannot be used, TrainError where training cannot go on, Interrupted once `stop` is set.
    """
    began = time.monotonic()
    device = pick_device(device)
    process = PartialState(cpu=device == "cpu")
    rows = load_sft(rows_path) if method == "sft" else load_pairs(rows_path)
    path = resolve(base)
    fingerprint = {
        "method": method,
        "base": base,
        "base_id": content_of(path),
        "settings": settings.model_dump(mode="json"),
        "rows_id": canon.id_of_bytes(Path(rows_path).read_bytes()),
        "pair_set_id": pair_set_id([row.id for row in rows]),
        "seed": seed,
    }
    folder = Folder(Path(out), fingerprint)
    with folder.owned() if process.is_main_process else nullcontext():
        if done := folder.finished():
            return TrainResult(folder.out / done["kind"], done, reused=True)
        tokenizer = load_tokenizer(path)
        examples, dropped = tokenise(rows, Renderer(tokenizer), settings.max_length)
        opened: list[Any] = [None, None]
        if process.is_main_process:
            opened = list(folder.open_state(lambda: {"dtype": pick_dtype(dtype, device)}))
        resume, chosen = broadcast_object_list(opened)
        job = Job(
            folder=folder,
            base=path,
            settings=settings,
            examples=examples,
            order=training_order([e.n_tokens for e in examples], settings.epochs, settings.micro_batch_size, seed),
            seed=seed,
            device=device,
            dtype=chosen["dtype"],
            on_step=on_step,
            stop=stop or threading.Event(),
            resume=resume,
        )
        trainer = build(job, tokenizer)
        _run(job, trainer)
        part = _save_weights(job, trainer)
        said = {
            **(manifest or {}),
            **_curve_ends(folder.curve),
            "n_rows": len(rows),
            "dropped": dropped,
            "steps": job.steps,
            "device": device,
            "dtype": job.dtype,
            "wall_s": round(time.monotonic() - began, 1),
        }
        if process.is_main_process:
            said = folder.finish(job.kind, part, said)
        process.wait_for_everyone()
    return TrainResult(folder.out / job.kind, said, reused=False)


def _run(job: Job, trainer: Any) -> None:
    """Train to the last step. Raises Interrupted where a stop was asked for before."""
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Progress(job, lambda: trainer.n_tokens_seen))
    try:
        trainer.train(resume_from_checkpoint=str(job.resume) if job.resume else None)
    except pickle.UnpicklingError as error:
        raise TrainError(
            f"{job.resume}: holds more than numbers and was not loaded ({error}); remove {job.resume} and "
            "run the same command again"
        ) from error
    if trainer.state.global_step < job.steps:
        raise Interrupted(f"stopped at step {trainer.state.global_step} of {job.steps}; the same command goes on there")


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
    losses = [json.loads(line)["loss"] for line in curve.read_text(encoding="utf-8").splitlines()]
    return {"loss_first": losses[0], "loss_last": losses[-1]} if losses else {}
