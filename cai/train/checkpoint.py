"""A training's folder: the state it resumes from, and the checkpoint it leaves.

    OUT/
      adapter/ or model/    the trained weights as safetensors; appears whole, by a rename
      curve.jsonl           one line a step: loss, learning rate, tokens/s …
      checkpoint.json       what was trained on what; written last, so without it there is no checkpoint
      state/                while training: weights and optimizer state, each with a seal written last; the weights
                            as safetensors, or as FSDP and DeepSpeed keep them

Nothing that could run code is ever loaded: optimizer, scheduler and random state are read with `weights_only=True`,
and `training_args.bin`, which the trainer would write beside them, is removed.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from cai import __version__, canon
from cai.durable import sync_file
from cai.errors import UserError
from cai.manifest import write_atomically
from cai.model.folder import content_of
from cai.model.trained import LOCK, check_whole, is_finished, manifest_of
from cai.train.admit import sharding

SCHEMA = 1
SEAL = "seal.json"
TRAINING_ARGS = "training_args.bin"
"""A pickle the trainer writes and nobody here reads: it is removed wherever it appears."""
_WRITTEN_BY = ("torch", "transformers", "trl", "peft", "accelerate")


class Folder:
    """The folder of one training, owned by one process at a time."""

    def __init__(self, out: Path, fingerprint: dict[str, Any]) -> None:
        self.out = out
        self.state = out / "state"
        self.curve = out / "curve.jsonl"
        self.fingerprint = fingerprint
        """What must be equal for a state to be resumed: method, settings, rows, base, seed."""

    @contextmanager
    def owned(self) -> Iterator[Folder]:
        """Hold the folder. Raises UserError where another process trains into it."""
        try:
            self.out.mkdir(parents=True, exist_ok=True)
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise UserError(f"{self.out}: no folder can be made here ({error.strerror}); name another one") from None
        with open(self.out / LOCK, "w", encoding="utf-8") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"{self.out}: another process trains into this folder; wait or stop it") from None
            yield self

    def finished(self) -> dict[str, Any] | None:
        """Return the manifest of the checkpoint that is here, or None. Raises UserError where it is another one's."""
        if not is_finished(self.out):
            return None
        manifest = manifest_of(self.out)
        differing = [k for k, v in self.fingerprint.items() if manifest.get(k) != v]
        if differing:
            raise UserError(
                f"{self.out}: holds a finished checkpoint with other {', '.join(differing)}; "
                "name another folder or remove this one"
            )
        check_whole(self.out, manifest)
        return manifest

    def open_state(self, choose: Callable[[], dict[str, Any]]) -> tuple[Path | None, dict[str, Any]]:
        """Return the last sealed state of this very training (None to start anew), and what was chosen at its start.

        `choose` makes the choices of a new training, such as the precision that this machine is fastest with; a
        resumed one keeps its own. The state of any other training is removed, and its curve.
        """
        path = self.state / "training.json"
        known = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if known.get("training") != json.loads(canon.dumps(self.fingerprint)):
            shutil.rmtree(self.state, ignore_errors=True)
            self.curve.unlink(missing_ok=True)  # its first look was at another policy
            known = {"training": self.fingerprint, "chosen": choose()}
            write_atomically(path, canon.dumps(known))
        sealed = [state for state in self.state.glob("checkpoint-*") if _is_sealed(state)]
        last = max(sealed, key=_step_of, default=None)
        self._cut_curve(_step_of(last) if last else 0)
        return last, known["chosen"]

    def seal(self, state: Path) -> None:
        """Push a state to the disk, mark it as whole, and only then let go of the earlier ones."""
        (state / TRAINING_ARGS).unlink(missing_ok=True)
        files = sorted(path for path in state.rglob("*") if path.is_file())
        sizes = {str(path.relative_to(state)): sync_file(path) for path in files}
        write_atomically(state / SEAL, canon.dumps(sizes))
        for other in self.state.glob("checkpoint-*"):
            if other != state:
                shutil.rmtree(other)

    def finish(self, kind: str, part: Path, manifest: dict[str, Any]) -> dict[str, Any]:
        """Publish the weights in `part` as OUT/`kind`, then the manifest; return the manifest as written."""
        for stray in (TRAINING_ARGS, "README.md"):
            (part / stray).unlink(missing_ok=True)
        files = {f"{kind}/{p.name}": sync_file(p) for p in sorted(part.iterdir()) if p.is_file()}
        target = self.out / kind
        shutil.rmtree(target, ignore_errors=True)
        part.rename(target)
        weights = content_of(target)
        body = {"schema": SCHEMA, **self.fingerprint, **manifest, "kind": kind, "weights_id": weights, "files": files}
        body["versions"] = {"cai": __version__, **{name: _version(name) for name in _WRITTEN_BY}}
        write_atomically(self.out / "checkpoint.json", json.dumps(body, indent=1, ensure_ascii=False))
        shutil.rmtree(self.state, ignore_errors=True)
        return body

    def _cut_curve(self, step: int) -> None:
        """Forget the curve after `step`: those steps will be made again."""
        if self.curve.exists():
            lines = (line for line in self.curve.read_text(encoding="utf-8").splitlines() if line.endswith("}"))
            kept = [line for line in lines if json.loads(line)["step"] <= step]
            write_atomically(self.curve, "".join(line + "\n" for line in kept))


@contextmanager
def numbers_only() -> Iterator[None]:
    """Have torch load nothing that could run code while the block runs, whatever it is asked for.

    DeepSpeed asks for any pickle when it resumes. Of what its states hold beside numbers three classes are let in.
    """
    known: list[Any] = []
    if sharding() == "DEEPSPEED":
        from deepspeed.runtime.fp16.loss_scaler import LossScaler
        from deepspeed.runtime.zero.config import ZeroStageEnum
        from deepspeed.utils.tensor_fragment import fragment_address

        known = [LossScaler, ZeroStageEnum, fragment_address]
    with mock.patch.dict(os.environ, TORCH_FORCE_WEIGHTS_ONLY_LOAD="1"), torch.serialization.safe_globals(known):
        yield


def _is_sealed(state: Path) -> bool:
    try:
        sizes = json.loads((state / SEAL).read_text(encoding="utf-8"))
        return all((state / name).stat().st_size == size for name, size in sizes.items())
    except (OSError, ValueError):
        return False


def _step_of(state: Path) -> int:
    return int(state.name.rpartition("-")[2])


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
