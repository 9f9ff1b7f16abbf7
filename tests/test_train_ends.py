"""Trainings that are cut short at their very end, or begun anew in a folder that knows another one."""

from __future__ import annotations

import importlib
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from cai.errors import TrainError, UserError
from cai.train.checkpoint import Folder
from tests import sharded
from tests.planted import CountsRed, write_prompts
from tests.test_gloo import spec_of, started
from tests.test_train_watch import WATCH, looking, rows_of, trained
from tests.tiny import make_model
from tests.training import SETTINGS, curve, one_thread, planted_pairs, write

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")

SAMPLES = {"max_new_tokens": 3, "answers": 4, "epochs": 99.0, "warmup": 0.0}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


@contextmanager
def killed_before_the_manifest() -> Iterator[None]:
    """Kill a training when its last state is sealed and its weights are written."""
    from cai.train import checkpoint

    write_atomically = checkpoint.write_atomically

    def dies(target: Path, content: Any) -> None:
        if target.name == "checkpoint.json":
            raise KeyboardInterrupt
        write_atomically(target, content)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(checkpoint, "write_atomically", dies)
        yield


def weights_of(result: Any) -> dict[str, Any]:
    from safetensors.torch import load_file

    return load_file(next(result.path.glob("*model.safetensors")))


class BreaksAtALook(CountsRed):
    """The planted reward, but no number at the second look, which is at sixteen answers."""

    n_looks = 0

    def score(self, rollouts: Any) -> list[float | None]:
        self.n_looks += len(rollouts) == 16
        return [float("nan")] * 16 if self.n_looks == 2 else super().score(rollouts)


def grouped(method: str, model: Path, folder: Path, source: Any = None, on_step: Any = None, **changes: Any) -> Any:
    """Train a group method on prompts of its own."""
    from cai.config import GroupSection

    train = importlib.import_module(f"cai.train.{method}").train
    spec, stop = changes.pop("spec", None) or looking(folder), changes.pop("stop", None)
    settings = GroupSection.model_validate({**SETTINGS, **SAMPLES, **changes})
    told = {"device": "cpu", "dtype": "float32", "sources": [(source or CountsRed(), 1.0)], "spec": spec, "stop": stop}
    rows = write_prompts(folder / "prompts.jsonl", list("abcdefg"))
    return train(rows, str(model), folder / "out", settings, on_step=on_step, **told)


# --- another training in the same folder --------------------------------------------------------------------------


@pytest.mark.parametrize("begun_anew", ["with another base", "by hand"])
def test_a_training_that_begins_anew_is_measured_by_its_own_first_look(
    begun_anew: str, tiny: Path, tmp_path: Path
) -> None:
    from cai.train.job import Interrupted

    by_hand = begun_anew == "by hand"
    changes = {"lora": None, "learning_rate": 0.005, "watch": {"patience": 1}}
    for name in ("anew", "fresh"):
        (tmp_path / name).mkdir()
    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        before = tiny if by_hand else make_model(tmp_path / "other", seed=1)
        trained("sft", before, tmp_path / "anew", stop=stop, **changes)
    if by_hand:
        shutil.rmtree(tmp_path / "anew" / "out" / "state")
    anew, fresh = (trained("sft", tiny, tmp_path / name, **changes) for name in ("anew", "fresh"))
    assert fresh.manifest["tripped"]["kept_step"] == 0 < fresh.manifest["steps"]
    assert anew.manifest["tripped"] == fresh.manifest["tripped"]
    looks = [
        [{k: v for k, v in row.items() if k.startswith("held_out")} for row in curve(tmp_path / name / "out")]
        for name in ("anew", "fresh")
    ]
    assert looks[0] == looks[1] and looks[0][0]
    ours, theirs = weights_of(anew), weights_of(fresh)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


def test_a_folder_forgets_the_curve_of_another_training(tmp_path: Path) -> None:
    row = '{"step": 0, "held_out_kl": 0.0}\n'
    first, second = Folder(tmp_path, {"seed": 1}), Folder(tmp_path, {"seed": 2})
    first.state.mkdir()
    first.open_state(lambda: {"dtype": "float32"})
    first.curve.write_text(row)
    assert first.open_state(dict) == (None, {"dtype": "float32"}) and first.curve.read_text() == row
    second.open_state(dict)
    assert not second.curve.exists()


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_other_held_out_prompts_are_another_training(method: str, tiny: Path, tmp_path: Path) -> None:
    from cai.train.job import Interrupted

    def train(held_out: str, on_step: Any = None, stop: Any = None) -> Any:
        if method == "sft":
            return trained("sft", tiny, tmp_path, held_out=held_out, on_step=on_step, stop=stop, max_steps=3)
        watch = {**WATCH, "judge_fall": None}
        told = {"spec": looking(tmp_path, held_out), "stop": stop, "max_steps": 3, "watch": watch}
        return grouped("grpo", tiny, tmp_path, on_step=on_step, **told)

    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        train("abcd", stop=stop)
    steps: list[Any] = []
    train("abcde", lambda row: steps.append(row["step"]))
    assert steps == [1, 2, 3]
    with pytest.raises(UserError, match="a finished checkpoint with other held_out_id"):
        train("abcdef")


def test_best_weights_that_are_gone_are_named(tiny: Path, tmp_path: Path) -> None:
    from cai.train.job import Interrupted

    stop = threading.Event()
    stop.set()
    with pytest.raises(Interrupted):
        trained("sft", tiny, tmp_path, stop=stop)
    (tmp_path / "out" / "state" / "best.safetensors").unlink()
    with pytest.raises(TrainError, match="best.safetensors: is not here, expected the weights of step 0, .* remove .*"):
        trained("sft", tiny, tmp_path)


# --- killed when all is done --------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sft", "grpo"])
def test_a_wire_that_was_tripped_stays_tripped(method: str, tiny: Path, tmp_path: Path) -> None:
    """By a fall that the curve tells too, and by a look that was no number, which it cannot tell."""

    def train(name: str, on_step: Any = None) -> Any:
        (tmp_path / name).mkdir(exist_ok=True)
        if method == "sft":
            changes = {"lora": None, "learning_rate": 0.005, "watch": {"patience": 1}, "on_step": on_step}
            return trained("sft", tiny, tmp_path / name, **changes)
        watch = {**WATCH, "judge_fall": None}
        return grouped("grpo", tiny, tmp_path / name, BreaksAtALook(), on_step, watch=watch, learning_rate=0.05)

    whole = train("whole")
    with killed_before_the_manifest():
        train("killed")
    steps: list[Any] = []
    again = train("killed", steps.append)
    assert not steps and not again.reused
    assert again.manifest["tripped"] == whole.manifest["tripped"] is not None
    assert again.manifest["tripped"]["wire"] == ("judge_fall" if method == "sft" else "not_finite")
    assert again.manifest["steps"] == whole.manifest["steps"] == again.manifest["tripped"]["step"]
    ours, theirs = weights_of(again), weights_of(whole)
    assert all((ours[name] == theirs[name]).all() for name in theirs)


@pytest.mark.parametrize("method", ["sft", "reward", "grpo", "rloo"])
def test_no_step_is_done_after_the_last(method: str, tiny: Path, tmp_path: Path) -> None:
    from cai.config import RewardSection, SftSection

    def train(on_step: Any = None) -> Any:
        if method in ("grpo", "rloo"):
            return grouped(method, tiny, tmp_path, on_step=on_step, max_steps=3, watch=None)
        rows = rows_of("sft", tmp_path) if method == "sft" else write(tmp_path / "rows.jsonl", planted_pairs(48))
        settings: Any = {**SETTINGS, "max_steps": 3} | ({"held_out": 0.0} if method == "reward" else {})
        section: Any = SftSection if method == "sft" else RewardSection
        told = {"device": "cpu", "dtype": "float32", "on_step": on_step}
        module = importlib.import_module(f"cai.train.{method}")
        return module.train(rows, str(tiny), tmp_path / "out", section.model_validate(settings), **told)

    with killed_before_the_manifest():
        train()
    written = {path.name: path.read_bytes() for path in (tmp_path / "out" / "adapter").glob("*.safetensors")}
    steps: list[Any] = []
    result = train(steps.append)
    assert not steps and result.manifest["steps"] == 3
    assert [row["step"] for row in curve(tmp_path / "out")] == [1, 2, 3]
    assert {path.name: path.read_bytes() for path in result.path.glob("*.safetensors")} == written


@pytest.mark.parametrize("by", ["FSDP", "DEEPSPEED"])
def test_a_model_in_parts_that_has_done_its_last_step_is_published_by_the_next_command(by: str, tmp_path: Path) -> None:
    if by == "DEEPSPEED":
        pytest.importorskip("deepspeed", reason="needs `pip install deepspeed` and a C++ compiler")
    spec = spec_of("grpo", tmp_path)
    spec["settings"] |= {"lora": None, "max_steps": 2, "watch": None}
    out, path = tmp_path / "out", tmp_path / "out.json"
    path.write_text(json.dumps({**spec, "out": str(out)}))
    out.mkdir()
    (out / "model").write_text("a file, where the weights' folder is to be")
    with started(path, 2, **sharded.LAUNCHED[by]) as ranks:
        assert [rank.wait() for rank in ranks] != [0, 0]
    assert [row["step"] for row in curve(out)] == [1, 2]
    kept = {path.name: path.read_bytes() for path in (out / ".model.part").glob("*.safetensors")}
    (out / "model").unlink()
    with started(path, 2, **sharded.LAUNCHED[by]) as ranks:
        assert list(ranks[0].steps()) == []
        assert [rank.wait() for rank in ranks] == [0, 0], ranks[0].log.read_text()[-3000:]
    assert json.loads((out / "checkpoint.json").read_text())["steps"] == 2
    assert kept and {path.name: path.read_bytes() for path in (out / "model").glob("*.safetensors")} == kept
