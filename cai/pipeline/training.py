"""Training a phase's policy in a process of its own, so that its memory goes with it and a kill costs one step."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from cai import canon
from cai.config import RunConfig, TrainerSection
from cai.errors import TrainError, UserError
from cai.manifest import write_atomically
from cai.model.fetch import resolve
from cai.pairs import phase_rows, write_jsonl
from cai.pipeline.meter import Meter, Stage
from cai.trail import RunView


def rows_for(run: RunView, phase: str, method: str, out: Path) -> int:
    """Write the rows that a phase trains on to `out`; return how many. Raises UserError where there are none."""
    n_rows = write_jsonl(out, phase_rows(run, phase, method))
    if not n_rows:
        raise UserError(
            f"phase '{phase}' left no rows to train {method} on; `cai report` shows where the comparisons ended "
            "(more prompts or samples, another principle, or looser pairs.… filters may help)"
        )
    return n_rows


def checkpoint_dir(folder: Path, phase: str) -> Path:
    """Return where a phase's checkpoint lies."""
    return folder / "checkpoints" / phase


def finished(out: Path) -> dict[str, Any] | None:
    """Return the manifest of a finished checkpoint, or None. It is written last, so a half-written one has none."""
    path = out / "checkpoint.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


async def train(
    config: RunConfig,
    folder: Path,
    phase: str,
    method: str,
    rows: Path,
    base: str,
    meter: Meter,
    n_rows: int,
    further: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and return the checkpoint's manifest. `further` is added to the spec.

    Raises TrainError with the log's last lines where it fails.
    """
    out = checkpoint_dir(folder, phase)
    section: TrainerSection = getattr(config.train, method)
    spec = {
        "method": method,
        "rows": str(rows),
        "base": resolve(base),
        "trust_remote_code": config.models.policy.trust_remote_code,
        "out": str(out),
        "settings": section.model_dump(mode="json"),
        "seed": canon.seed_of(config.run.seed, "train", phase),
        "device": config.train.device,
        "dtype": config.train.dtype,
        "track": list(config.train.track),
        "manifest": {"phase": phase, "rows_id": canon.id_of_files(rows), "n_rows": n_rows},
    } | (further or {})
    spec_path = out.parent / f"{phase}.spec.json"
    write_atomically(spec_path, json.dumps(spec, indent=1))
    log_path = folder / "logs" / f"train-{phase}.log"
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with meter.stage(f"train {phase} ({method}, {n_rows} rows)", 0) as stage, open(log_path, "ab") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "cai.train.run", str(spec_path), stdout=asyncio.subprocess.PIPE, stderr=log
        )
        try:
            await _follow(process, stage)
        except BaseException:
            await _stop(process)
            raise
    result = finished(out)
    if process.returncode != 0 or result is None:
        raise TrainError(f"training of phase '{phase}' failed (exit {process.returncode}):\n{_tail(log_path)}")
    return result


async def _follow(process: asyncio.subprocess.Process, stage: Stage) -> None:
    assert process.stdout is not None
    async for line in process.stdout:
        try:
            said = json.loads(line)
        except ValueError:
            continue
        if "step" in said:
            stage.done, stage.total = said["step"], said.get("steps", stage.total)
            stage.note = _note(said) or stage.note
    await process.wait()


def _note(said: dict[str, Any]) -> str:
    """Return what a step's line is worth saying: reward and divergence where answers are sampled, else the loss."""
    if said.get("reward") is not None and said.get("kl") is not None:
        return f"reward {said['reward']:.3f}, KL {said['kl']:.2f}"
    return f"loss {said['loss']:.4f}" if said.get("loss") is not None else ""


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Ask the trainer to save and leave; it is killed if it does not within a few seconds."""
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), 4)
        except TimeoutError:
            process.kill()


def _tail(path: Path, n: int = 15) -> str:
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()[-n:]
    return "\n".join(f"  {line}" for line in lines) + f"\n  (all of it: {path})"


async def merged(out: Path, base: str, meter: Meter, *, trust_remote_code: bool = False) -> Path:
    """Return the full checkpoint of a finished training: its `model` folder, made from the adapter if need be."""
    model = out / "model"
    if not model.exists():
        command = [sys.executable, "-m", "cai.model.merge", resolve(base), str(out / "adapter"), str(model)]
        command += ["--trust-remote-code"] if trust_remote_code else []
        with meter.stage(f"merge {out.name}", 1):
            process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
            _, said = await process.communicate()
        if process.returncode != 0:
            raise TrainError(f"merging the adapter of '{out}' failed:\n{said.decode(errors='replace')[-2000:]}")
    return model
