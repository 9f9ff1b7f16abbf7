"""The GPU benchmark's arithmetic, and all of its measuring on a tiny model without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import gpu
from bench.gpu import SHAPES, flops_per_token, peak_of
from tests import forked


def test_weights_of_known_shapes() -> None:
    small, large = SHAPES["135m"], SHAPES["8b"]
    assert small.matmul_weights + small.hidden * small.vocabulary == pytest.approx(134.5e6, rel=1e-3)
    assert large.matmul_weights + 2 * large.hidden * large.vocabulary == pytest.approx(8.03e9, rel=1e-3)


def test_operations_by_hand() -> None:
    shape = SHAPES["tiny"]  # two layers of 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64 = 9,216 weights
    assert shape.matmul_weights == 2 * 9216
    assert flops_per_token(shape, 10, 0.5, output_layer=False) == 6 * 18432 + 6 * 2 * 32 * 10
    assert flops_per_token(shape, 10, 0.5, output_layer=True) == 6 * 18432 + 3840 + 6 * 32 * 1024 * 0.5


def test_an_adapter_needs_no_gradient_of_the_weights() -> None:
    large = SHAPES["8b"]
    per_token = flops_per_token(large, 1, 0.0, output_layer=True)
    assert per_token == pytest.approx(4 * large.matmul_weights, rel=1e-3)


@pytest.mark.parametrize(
    ("name", "tflops"),
    [("NVIDIA H200", 989), ("NVIDIA A100-SXM4-80GB", 312), ("NVIDIA A10G", 125), ("NVIDIA L40S", 362), ("cpu", None)],
)
def test_peaks_are_found_by_name(name: str, tflops: float | None) -> None:
    peak = peak_of(name)
    assert peak is None if tflops is None else peak == tflops * 1e12


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "sees no CUDA device" in capsys.readouterr().err and not (tmp_path / "gpu.json").exists()


def test_everything_it_measures_is_measured_on_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(gpu, "measure_apart", lambda job: forked.told_by(gpu._job, job))
    assert gpu.main(["--shape", "tiny", "--steps", "4", "--out", str(out)]) == 0
    told = json.loads(out.read_text(encoding="utf-8"))
    found = told["shapes"]["tiny"]
    for method in gpu.available():
        assert found[method]["step_s"] > 0 and found[method]["rows_per_s"] > 0
    for method in ("sft", "dpo"):
        assert found[method]["tokens_per_s"] > 0 and found[method]["tflops"] >= 0
    assert found["pipeline"]["rows"] == SHAPES["tiny"].n_prompts and found["pipeline"]["failed"] == 0
    assert found["pipeline"]["rows_per_s"] > 0 and found["pipeline"]["tokens_per_s"] > 0
    assert told["published"]["tokens_per_s_per_gpu"] == [39, 51] and told["machine"]["date"]


def test_what_fails_takes_no_other_measurement_with_it(tmp_path: Path) -> None:
    told = gpu.measure_apart(
        {"what": "model", "shape": "none", "folder": str(tmp_path), "base": str(tmp_path / "base"), "steps": 2}
    )
    assert "KeyError: 'none'" in told["error"]
