"""Trains in a process of its own: `python -m cai.train.run SPEC`, also under `accelerate launch -m`.

SPEC is a training file (YAML, see cai.train.files) or what a run writes: JSON that holds method (`sft`, `dpo`,
`reward`, `ppo`, `grpo` or `rloo`), rows, base, out, settings, and may hold seed, device, dtype, trust_remote_code,
held_out, manifest and track (where else curves are shown). Methods that sample, or have `watch` set, take further:
constitution (a file), held_out (a file of prompts), engine, and judge (model, engine, identity, tokens, templates,
near, max_outside_mass, sleeps; see `cai.pipeline.rewarding`). Every line on standard output is a JSON object: a step of
the curve, then `{"done": …}` or `{"error": …}`; what libraries print goes to standard error.

Exit codes: 0 done, 1 training failed, 2 the input cannot be used, 130 stopped by SIGINT or SIGTERM with its state
saved. The same command goes on from the last saved state. On Linux the process is killed when its parent dies; the
state it saves now and then is what a later run goes on from.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from cai import shipped, yamlfile
from cai.config import (
    DpoSection,
    GroupSection,
    JudgeSection,
    PpoSection,
    RewardSection,
    SftSection,
    TrainerSection,
)
from cai.engine.reach import tokenizer_of
from cai.errors import CaiError, UserError
from cai.model import code
from cai.train.files import TrainingFile

_SECTIONS: dict[str, type[TrainerSection]] = {
    "sft": SftSection,
    "dpo": DpoSection,
    "reward": RewardSection,
    "ppo": PpoSection,
    "grpo": GroupSection,
    "rloo": GroupSection,
}
_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Train what the spec asks for; return the exit code."""
    if not arguments:
        print("usage: python -m cai.train.run SPEC [a.b=c …]", file=sys.stderr)
        return 2
    die_with_parent()
    quiet_libraries()
    out = own_stdout()
    try:
        with stoppable() as stop:
            result = train(read_spec(Path(arguments[0]), arguments[1:]), out, stop)
    except CaiError as error:
        say(out, {"error": str(error), "kind": type(error).__name__})
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    say(out, {"done": str(result.path), "reused": result.reused, "manifest": result.manifest})
    return 0


def read_spec(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the spec. Raises UserError where it cannot be read or asks for an unknown method.

    Overrides are for training files.
    """
    if path.suffix in (".yaml", ".yml"):
        return spec_of(path, overrides)
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as a training spec ({error})") from error
    missing = [key for key in ("method", "rows", "base", "out", "settings") if key not in spec]
    if missing:
        raise UserError(f"{path}: the spec has no {', '.join(missing)}")
    if spec["method"] not in _SECTIONS:
        raise UserError(f"{path}: unknown method '{spec['method']}'; expected one of {', '.join(_SECTIONS)}")
    return spec


def spec_of(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the spec of a training file. Raises what names every problem in it."""
    file = yamlfile.load(path, TrainingFile, overrides=list(overrides)).value
    near = path.resolve().parent
    spec = {key: getattr(file, key) for key in ("method", "base", "trust_remote_code", "out", "seed")}
    return spec | {
        "rows": str(shipped.find(file.rows, near=near)),
        "held_out": str(shipped.find(file.held_out, near=near)) if file.held_out else None,
        "settings": getattr(file.train, file.method).model_dump(mode="json"),
        "device": file.train.device,
        "dtype": file.train.dtype,
        "track": list(file.train.track),
        **(_asking(file, near) if file.asks else {}),
    }


def _asking(file: TrainingFile, near: Path) -> dict[str, Any]:
    """Return what the spec of a method that answers prompts holds further."""
    engine, judge = file.engine.model_dump(mode="json"), None
    if file.judge is not None:
        judge = {
            "model": file.judge.model_dump(mode="json"),
            "engine": engine,
            "identity": f"{file.judge.served_name or 'served'} at {', '.join(sorted(file.judge.base_url))}",
            "tokens": tokenizer_of(file.judge, file.engine),
            "templates": str(shipped.root() / "prompts"),
            "near": file.out,
            "max_outside_mass": JudgeSection().max_outside_mass,
        }
    constitution = str(shipped.find(file.constitution, near=near)) if file.constitution else None
    return {"constitution": constitution, "engine": engine, "judge": judge}


def train(spec: dict[str, Any], out: TextIO, stop: threading.Event) -> Any:
    """Return the TrainResult of a spec, telling `out` of every step."""
    return train_with(spec, lambda row: say(out, row), stop)


def train_with(spec: dict[str, Any], tell: Callable[[dict[str, Any]], None], stop: threading.Event) -> Any:
    """Return the TrainResult of a spec, telling `tell` and the trackers that it names of every step."""
    from cai.train.telemetry import Trackers

    if spec.get("trust_remote_code"):
        print(code.said(spec["base"]), file=sys.stderr)
    shown = Trackers(spec.get("track", ()), Path(spec["out"]).name, Path(spec["out"]) / "trackers")

    def on_step(row: dict[str, Any]) -> None:
        tell(row)
        shown.send(row)

    try:
        return _train(spec, on_step, stop)
    finally:
        shown.close()


def _train(spec: dict[str, Any], on_step: Callable[[dict[str, Any]], None], stop: threading.Event) -> Any:
    method = importlib.import_module(f"cai.train.{spec['method']}").train
    return method(
        spec["rows"],
        spec["base"],
        Path(spec["out"]),
        _SECTIONS[spec["method"]].model_validate(spec["settings"]),
        seed=spec.get("seed", 0),
        device=spec.get("device", "auto"),
        dtype=spec.get("dtype", "auto"),
        trust_remote_code=spec.get("trust_remote_code", False),
        manifest=spec.get("manifest"),
        on_step=on_step,
        stop=stop,
        **({"held_out": spec.get("held_out")} if spec["method"] == "reward" else {"spec": spec}),
    )


def say(out: TextIO, message: dict[str, Any]) -> None:
    """Write one JSON line."""
    out.write(json.dumps(message, ensure_ascii=False) + "\n")
    out.flush()


def own_stdout() -> TextIO:
    """Return standard output for our lines alone; whatever else prints there goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return ours


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """Yield what SIGINT or SIGTERM sets, to stop after the step in progress; the second one leaves at once.

    Either way the last saved state stays.
    """
    stop = threading.Event()

    def on_signal(*_: Any) -> None:
        if stop.is_set():
            os._exit(130)
        stop.set()
        os.write(2, b"\nstopping after the step in progress; once more leaves at once\n")

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def die_with_parent() -> None:
    """Have Linux kill this process when the one that started it dies."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def quiet_libraries() -> None:
    """Let libraries neither report usage nor draw progress bars."""
    for name in ("HF_HUB_DISABLE_TELEMETRY", "DO_NOT_TRACK", "TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS"):
        os.environ.setdefault(name, "1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
