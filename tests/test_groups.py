"""GRPO and RLOO on a tiny model: without a beta, with rewards that are missing, on few prompts."""

from __future__ import annotations

import functools
import importlib
import os
import socket
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from cai.config import GroupSection
from cai.errors import TrainError, UserError
from tests.forked import told_by
from tests.planted import CountsRed, write_prompts
from tests.test_gloo import environment
from tests.test_train_watch import WATCH, looking
from tests.tiny import make_model
from tests.training import SETTINGS, curve, one_thread

__all__ = ["one_thread"]
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.parametrize("method", ["grpo", "rloo"])]

CALM = {**WATCH, "judge_fall": None, "entropy_share": None, "kl_ceiling": None}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def trained(
    method: str, model: Path, folder: Path, source: Any = None, prompts: str = "abcdefg", **changes: Any
) -> Any:
    """Train three steps, two groups of four answers in each, unless it is said otherwise."""
    write_prompts(folder / "prompts.jsonl", list(prompts))
    return run(method, model, folder, source or CountsRed(), **{"spec": looking(folder), **changes})


def run(method: str, model: Path, folder: Path, source: Any, spec: Any = None, **changes: Any) -> Any:
    """Train on the prompts that lie in the folder."""
    settings = {**SETTINGS, "max_new_tokens": 3, "answers": 4, "epochs": 99.0, "max_steps": 3, "warmup": 0.0}
    section = GroupSection.model_validate({**settings, "watch": None, **changes})
    told: dict[str, Any] = {"device": "cpu", "dtype": "float32", "spec": spec, "sources": [(source, 1.0)]}
    train = importlib.import_module(f"cai.train.{method}").train
    return train(folder / "prompts.jsonl", str(model), folder / "out", section, **told)


class Varies(CountsRed):
    """Pays for a high first token, so that hardly two answers to a prompt are worth the same."""

    def score(self, rollouts: Any) -> list[float | None]:
        return [float(rollout.answer_ids[0]) for rollout in rollouts]


@pytest.mark.parametrize("lora", [{"r": 8}, None])
def test_without_a_beta_the_looks_still_measure_the_divergence(
    lora: Any, method: str, tiny: Path, tmp_path: Path
) -> None:
    watch = {**CALM, "kl_ceiling": 1e6}
    trained(method, tiny, tmp_path, Varies(), beta=0.0, lora=lora, learning_rate=0.05, watch=watch)
    rows = curve(tmp_path / "out")
    assert [row["step"] for row in rows] == [0, 1, 2, 3] and not any("kl" in row for row in rows)
    looked = {row["step"]: row["held_out_kl"] for row in rows if "held_out_kl" in row}
    assert looked[0] == pytest.approx(0, abs=1e-5) and abs(looked[2]) > 0.01 and abs(looked[3]) > 0.01


def test_a_ceiling_that_training_breaks_keeps_nothing_of_its_step(
    method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The held-out answers have not moved, and the judge likes each look better than the one before."""
    from safetensors.torch import load_file

    from cai.train.heldout import HeldOut
    from cai.train.watch import Watch

    likes = iter([{"reward": 0.0, "checks": 0.1 * i} for i in range(1, 9)])
    monkeypatch.setattr(HeldOut, "_scores", lambda self, answers: next(likes))
    monkeypatch.setattr(Watch, "_measure", lambda self, rollouts: {"kl": 0.0, "entropy": 1.0})
    weights: dict[int, dict[str, Any]] = {}
    look = Watch.look

    def looks(self: Watch, step: int) -> Any:
        weights[step] = {name: weight.detach().clone() for name, weight in self._trained().items()}
        return look(self, step)

    monkeypatch.setattr(Watch, "look", looks)
    changes = {"lora": None, "learning_rate": 0.05, "max_steps": 8, "beta": 0.01}
    result = trained(method, tiny, tmp_path, Varies(), watch={**CALM, "every": 1, "kl_ceiling": 1e-3}, **changes)
    trip = result.manifest["tripped"]
    assert trip["wire"] == "kl_ceiling" and trip["kept_step"] == trip["step"] - 1 > 0
    ours = load_file(result.path / "model.safetensors")
    assert all((ours[name] == weights[trip["kept_step"]][name]).all() for name in ours)


def test_an_answer_without_a_reward_has_no_advantage_and_counts_in_no_baseline(
    method: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it diverges. In a group of four the others' mean is that of three."""
    import torch

    from cai.train import grpo

    class LeavesOut(CountsRed):
        """Fails at the first answer of every group, and at all but one of the second group."""

        def score(self, rollouts: Any) -> list[float | None]:
            told.append([float(i) for i in range(len(rollouts))])
            for i in (0, 4, 5, 6):
                told[-1][i] = None
            return told[-1]

    told: list[Any] = []
    found: list[torch.Tensor] = []
    kind = {"grpo": grpo.CaiGRPOTrainer, "rloo": grpo.CaiRLOOTrainer}[method]
    generate = kind._generate_and_score_completions

    def looks(self: Any, inputs: Any) -> Any:
        made = generate(self, inputs)
        found.append(made["advantages"])
        return made

    monkeypatch.setattr(kind, "_generate_and_score_completions", looks)
    result = trained(method, tiny, tmp_path, LeavesOut(), beta=0.5, learning_rate=0.05)
    assert result.manifest["unscored"] == 3 * 4
    assert len(told) == len(found) == 3
    for advantages in found:
        assert advantages[[0, 4, 5, 6, 7]].tolist() == [0.0] * 5, "one alone has nobody to be compared with"
    first = found[0]  # the policy is still the reference, so only the rewards 1, 2 and 3 count
    expected = [-1.0, 0.0, 1.0] if method == "grpo" else [-1.5, 0.0, 1.5]
    assert first[[1, 2, 3]].tolist() == pytest.approx(expected, abs=1e-3)


class Fails(CountsRed):
    """The planted reward, which says nothing of one batch."""

    def __init__(self, at: int) -> None:
        self.at, self.n = at, 0

    def score(self, rollouts: Any) -> list[float | None]:
        self.n += 1
        return [None] * len(rollouts) if self.n == self.at else super().score(rollouts)


def test_a_step_of_which_nothing_could_be_scored_ends_the_training(method: str, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(TrainError, match="none of the 8 answers after step 1 could be scored"):
        trained(method, tiny, tmp_path, Fails(at=2))


def test_a_process_of_whose_answers_none_could_be_scored_goes_on_with_the_others(
    method: str, tiny: Path, tmp_path: Path
) -> None:
    """Six answers fall to each of two processes, a group and a half; in the second step those of the other one fail."""
    write_prompts(tmp_path / "prompts.jsonl", list("abcdefg"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = [(rank, port, method, tiny, tmp_path) for rank in range(2)]
    with ThreadPoolExecutor(2) as waiting:
        said = list(waiting.map(functools.partial(told_by, one_of_two), told))
    assert [each["steps"] for each in said] == [3, 3] and said[0]["unscored"] == 6
    assert [row["unscored"] for row in curve(tmp_path / "out")] == [0, 6, 0]


def one_of_two(told: tuple[int, int, str, Path, Path]) -> dict[str, Any]:
    """Train as one of two processes; return the manifest, or what went wrong."""
    rank, port, method, model, folder = told
    os.environ.update(environment(rank, 2, port))
    try:
        return run(method, model, folder, Fails(at=2 if rank else 0), batch_size=12, micro_batch_size=6).manifest
    except Exception as error:
        return {"steps": f"{type(error).__name__}: {error}"}


def test_prompts_too_few_for_a_step_come_round_again(method: str, tiny: Path, tmp_path: Path) -> None:
    changes = {"batch_size": 32, "answers": 2, "epochs": 1.0, "max_steps": None}
    result = trained(method, tiny, tmp_path, prompts="abcde", **changes)
    assert result.manifest["steps"] == 1 and [row["step"] for row in curve(tmp_path / "out")] == [1]


def test_a_held_out_prompt_beyond_the_models_context_is_named(method: str, tiny: Path, tmp_path: Path) -> None:
    long = write_prompts(tmp_path / "long.jsonl", ["a", "a " * 250])
    spec = {**looking(tmp_path), "held_out": str(long)}
    with pytest.raises(UserError, match="prompt a a .* tokens and 3 to answer with, but .* reads at most 256"):
        trained(method, tiny, tmp_path, watch={**CALM, "max_new_tokens": 3}, spec=spec)
    assert not (tmp_path / "out" / "state").exists()
