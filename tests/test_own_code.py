"""Code that comes with a model is run only where that was asked for, and then it is said and recorded."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from cai.cli import _parsed
from cai.config import DpoSection, EngineSection, JudgeSection, ModelSection, RewardMix, RewardSection
from cai.engine import command
from cai.engine.identity import model_identity
from cai.errors import UserError
from cai.model import code
from cai.pipeline.serving import identity_of
from tests.tiny import make_model
from tests.training import SETTINGS, one_thread, planted_pairs, write

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")

THEIRS = """\
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, LlamaModel

open({marker!r}, "w").close()


class C(LlamaConfig):
    model_type = "theirs"


class M(LlamaForCausalLM):
    config_class = C


class S(LlamaForSequenceClassification):
    config_class = C


class B(LlamaModel):
    config_class = C


AutoModel.register(C, B)
"""
CLASSES = {"AutoConfig": "C", "AutoModelForCausalLM": "M", "AutoModelForSequenceClassification": "S"}


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    from transformers import dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "ran"


@pytest.fixture
def theirs(tmp_path: Path, marker: Path) -> Path:
    folder = make_model(tmp_path / "theirs", pad=True)
    (folder / "modeling_theirs.py").write_text(THEIRS.format(marker=str(marker)))
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "theirs", "auto_map": {auto: f"modeling_theirs.{name}" for auto, name in CLASSES.items()}}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def trained(method: str, model: Path, out: Path, **asked: bool) -> Any:
    from cai.train import dpo, reward

    kind, train = {"dpo": (DpoSection, dpo.train), "reward": (RewardSection, reward.train)}[method]
    settings = kind.model_validate({**SETTINGS, "max_steps": 1})
    rows = write(out.parent / "rows.jsonl", planted_pairs(8))
    return train(rows, str(model), out, settings, device="cpu", dtype="float32", **asked)


def loaded(model: Path, **asked: bool) -> Any:
    from cai.engine.local import LocalModel

    return LocalModel.load(str(model), EngineSection(kind="transformers"), identity="theirs", **asked)


def test_without_leave_every_road_refuses_it_and_runs_nothing(theirs: Path, marker: Path, tmp_path: Path) -> None:
    from cai.engine.reward import RewardModel
    from cai.model.merge import merge_adapter
    from cai.train.rewards import RewardModel as Source

    (tmp_path / "adapter_model.safetensors").touch()
    (tmp_path / "adapter_config.json").write_text("{}")
    roads = [
        lambda: trained("dpo", theirs, tmp_path / "out"),
        lambda: trained("reward", theirs, tmp_path / "out"),
        lambda: loaded(theirs),
        lambda: RewardModel.load(str(theirs), identity="theirs"),
        lambda: Source([str(theirs)], RewardMix(model=("x",)), "cpu"),
        lambda: merge_adapter(str(theirs), str(tmp_path), tmp_path / "merged"),
    ]
    for road in roads:
        with pytest.raises(UserError, match="comes with Python code of its own .* set trust_remote_code: true"):
            road()
    assert not marker.exists() and not (tmp_path / "merged").exists()


def test_with_leave_it_is_trained_merged_and_asked_and_the_checkpoint_says_so(
    theirs: Path, marker: Path, tmp_path: Path
) -> None:
    from cai.model.merge import merge_adapter

    result = trained("dpo", theirs, tmp_path / "out", trust_remote_code=True)
    assert marker.exists() and result.manifest["trust_remote_code"] is True
    merged = merge_adapter(str(theirs), str(result.path), tmp_path / "merged", trust_remote_code=True)
    asyncio.run(loaded(merged, trust_remote_code=True).close())
    with pytest.raises(UserError, match="set trust_remote_code: true"):
        loaded(merged)


def test_a_trained_reward_model_does_not_give_itself_leave(theirs: Path, tmp_path: Path) -> None:
    from cai.train.rewards import RewardModel as Source
    from cai.train.scoring import RewardModel

    out = trained("reward", theirs, tmp_path / "out", trust_remote_code=True).path
    with pytest.raises(UserError, match="set trust_remote_code: true"):
        RewardModel.load(out.parent)
    assert RewardModel.load(out.parent, trust_remote_code=True).n_heads == 1
    Source([str(out)], RewardMix(model=("x",), trust_remote_code=True), "cpu")


def test_leave_and_the_code_itself_are_part_of_the_identity(theirs: Path) -> None:
    engine = EngineSection(kind="transformers")
    off, on = (
        identity_of(ModelSection(checkpoint=str(theirs), trust_remote_code=asked), engine) for asked in (False, True)
    )
    assert on == f"{off}+code"
    (theirs / "modeling_theirs.py").write_text("")
    assert model_identity(str(theirs)) != off


def test_the_server_is_given_leave_by_its_command_line_and_in_no_other_way(
    theirs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "build", lambda: "cpu")
    assert "--trust-remote-code" not in command.vllm(str(theirs), EngineSection(), 1).arguments
    assert "--trust-remote-code" in command.vllm(str(theirs), EngineSection(), 1, trust_remote_code=True).arguments
    with pytest.raises(UserError, match="engine.args: found '--trust-remote-code'"):
        command.vllm(str(theirs), EngineSection(args=("--trust-remote-code",)), 1)


def test_a_contest_gives_leave_by_its_command_says_so_and_keeps_it(theirs: Path, marker: Path, tmp_path: Path) -> None:
    from cai.cli import eval as door
    from cai.evaluate import suite
    from cai.pipeline import contestants
    from cai.pipeline.contest import Contest
    from cai.pipeline.meter import Meter

    meter, engine = Meter(), ["engine.kind=transformers"]
    told = contestants.of_names(suite.load("everyday"), [str(theirs)], None, engine, tmp_path, trusted=True)
    contest = Contest(told, meter)
    contest._prepare()
    assert contest.manifest["contest"]["trust_remote_code"] == [str(theirs)]
    assert contest.identities[0].endswith("+code") and meter.notes == [code.said(str(theirs))]
    words = ["eval", "--policy", str(theirs), "--suite", "everyday", "limit=1", *engine, "--out", str(tmp_path)]
    entries = [door._entry(_parsed(each), [], engine) for each in (words, [*words, "--trust-remote-code"])]
    assert [entry.policies[0].section.trust_remote_code for entry in entries] == [False, True]
    member = {"model": {"checkpoint": str(theirs), "trust_remote_code": True}}
    way = JudgeSection.model_validate({"mode": "panel", "panel": {"members": [{}, member]}})
    judged = suite.load("everyday").model_copy(update={"judge": way})
    plain = str(make_model(tmp_path / "plain"))
    other = Contest(contestants.of_names(judged, [plain], None, engine, tmp_path), Meter())
    other._prepare()
    assert other.manifest["contest"]["trust_remote_code"] == [str(theirs)], "who sits on a panel is told too"


def test_an_adapter_is_merged_by_hand_into_its_own_base_and_with_leave_only(
    theirs: Path, marker: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from cai.model.merge import main

    adapter = trained("dpo", theirs, tmp_path / "out", trust_remote_code=True).path
    words = [str(theirs), str(adapter), str(tmp_path / "merged")]
    assert main(words) == 2 and "comes with Python code of its own" in capsys.readouterr().err
    assert main([*words, "--trust-remote-code"]) == 0 and (tmp_path / "merged" / "model.safetensors").exists()
    assert main(words[:2]) == 2 and capsys.readouterr().err.startswith("usage: ")
    other = make_model(tmp_path / "other", pad=True, seed=5)
    assert main([str(other), *words[1:]]) == 2 and "trained on a base with id b2:" in capsys.readouterr().err


def test_a_training_file_asks_for_it_and_is_told_once(
    theirs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import threading

    from cai.train.run import spec_of, train_with

    rows = write(tmp_path / "rows.jsonl", planted_pairs(8))
    file = tmp_path / "train.yaml"
    text = f"method: dpo\nbase: {theirs}\nrows: {rows}\nout: {tmp_path / 'out'}\n"
    file.write_text(text)
    assert spec_of(file)["trust_remote_code"] is False
    file.write_text(text + "trust_remote_code: true\n")
    spec = spec_of(file, ["train.device=cpu", "train.dpo.max_steps=1"])
    result = train_with(spec, lambda row: None, threading.Event())
    assert result.manifest["trust_remote_code"] is True
    assert capsys.readouterr().err.count(f"Python code that comes with '{theirs}' is run") == 1
