"""Training a tiny model end to end: what it learns, what it refuses, and that a kill changes nothing."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from cai.config import DpoSection, SftSection
from cai.errors import TrainError, UserError
from cai.train.data import training_order
from cai.train.rows import load_pairs, load_sft
from tests.tiny import WORDS, make_model
from tests.training import SETTINGS, curve, margins, message, one_thread, planted_pairs, write

__all__ = ["one_thread"]

pytestmark = pytest.mark.filterwarnings("ignore")  # the trainers' libraries deprecate as they please


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


# --- rows ---------------------------------------------------------------------------------------------------------

GOOD = planted_pairs(1)[0]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**GOOD, "rejected": GOOD["chosen"]}, "same text"),
        ({**GOOD, "p_chosen": 1.5}, "'p_chosen' must be a number from 0 to 1, found 1.5"),
        ({**GOOD, "p_chosen": True}, "'p_chosen'"),
        ({**GOOD, "p_tie": "0.1"}, "'p_tie'"),
        ({**GOOD, "prompt": []}, "'prompt' must be a list of messages"),
        ({**GOOD, "prompt": message("hm", "assistant")}, "the last message of 'prompt' must be the user's"),
        ({**GOOD, "prompt": [{"role": "user"}]}, "needs a 'role' and a 'content'"),
        ({**GOOD, "chosen": message(" ", "assistant")}, "'chosen' must be one assistant message"),
        ({**GOOD, "chosen": message("x", "user")}, "'chosen' must be one assistant message"),
        ([1], "expected an object, found list"),
    ],
)
def test_a_bad_pair_is_named_with_file_and_line(row: Any, said: str, tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.jsonl", [GOOD, row])
    with pytest.raises(UserError) as caught:
        load_pairs(path)
    assert str(caught.value).startswith(f"{path}:2: ") and said in str(caught.value)


def test_every_bad_row_is_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": 1}\nnot json\n\n{"prompt": [{"role": "user", "content": "a"}], "completion": " "}\n')
    with pytest.raises(UserError) as caught:
        load_sft(path)
    assert [line.split(": ")[0] for line in str(caught.value).split("\n")] == [f"{path}:{n}" for n in (1, 2, 4)]


def test_no_rows_is_an_error_and_one_class_is_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no rows"):
        load_pairs(write(tmp_path / "empty.jsonl", []))
    with pytest.raises(UserError, match="cannot be read"):
        load_pairs(tmp_path / "missing.jsonl")
    assert len(load_pairs(write(tmp_path / "pairs.jsonl", planted_pairs(3)))) == 3


def test_pair_ids_come_from_the_provenance_beside_the_pairs(tmp_path: Path) -> None:
    pairs = write(tmp_path / "pairs.jsonl", planted_pairs(2))
    write(tmp_path / "provenance.jsonl", [{"pair_id": "b2:one"}, {"pair_id": "b2:two"}])
    assert [row.id for row in load_pairs(pairs)] == ["b2:one", "b2:two"]
    write(tmp_path / "provenance.jsonl", [{"pair_id": "b2:one"}])
    with pytest.raises(UserError, match="2 rows, but 1 lines of provenance"):
        load_pairs(pairs)


@pytest.mark.parametrize("epochs", [0.5, 1.0, 2.0, 2.5])
def test_every_pass_holds_every_row_once_and_neighbours_are_of_like_length(epochs: float) -> None:
    lengths = [random.Random(i).randint(1, 500) for i in range(203)]
    order = training_order(lengths, epochs, 4, seed=1)
    assert len(order) == round(epochs * 203) and order == training_order(lengths, epochs, 4, seed=1)
    assert order != training_order(lengths, epochs, 4, seed=2)
    for start in range(0, len(order) - 202, 203):
        assert sorted(order[start : start + 203]) == list(range(203))
    padded = sum(4 * max(lengths[j] for j in order[i : i + 4]) for i in range(0, len(order) - 4, 4))
    assert padded < 1.15 * sum(lengths[j] for j in order)


# --- tokens -------------------------------------------------------------------------------------------------------


def test_a_tokenizer_without_chat_template_is_refused(tmp_path: Path) -> None:
    from cai.train.data import load_tokenizer

    make_model(tmp_path, chat_template=None)
    with pytest.raises(UserError, match="no chat template"):
        load_tokenizer(str(tmp_path))


def test_the_end_of_turn_is_learnt_and_padding_is_not(tiny: Path) -> None:
    from cai.train.batches import IGNORE, sft_batch
    from cai.train.data import Renderer, SftRow, load_tokenizer

    tokenizer = load_tokenizer(str(tiny))
    end = tokenizer.eos_token_id
    assert tokenizer.pad_token_id == end, "this tokenizer pads with its end token, the case that goes wrong easily"
    renderer = Renderer(tokenizer)
    examples = [renderer.example(SftRow("r", message("a b"), text)) for text in ("one", "one two three")]
    labels = sft_batch(examples, tokenizer.pad_token_id)["labels"].tolist()
    ids = [tokenizer.convert_tokens_to_ids(w) for w in ("one", "two", "three")]
    assert labels[0] == [IGNORE] * 7 + [ids[0], end, IGNORE, IGNORE]
    assert labels[1] == [IGNORE] * 7 + [*ids, end]


def test_rows_that_are_too_long_are_counted_and_left_out(tiny: Path) -> None:
    from cai.train.data import Renderer, SftRow, load_tokenizer, tokenise

    rows = [SftRow("ok", message("a"), "b"), SftRow("long", message("a"), "b " * 40)]
    rows.append(SftRow("p", message("a " * 60), "b"))
    renderer = Renderer(load_tokenizer(str(tiny)))
    kept, dropped = tokenise(rows, renderer, 32)
    assert [e.id for e in kept] == ["ok"] and dropped == {"too long": 1, "prompt too long": 1}
    with pytest.raises(TrainError, match="all 3 rows are longer than 4 tokens"):
        tokenise(rows, renderer, 4)


def test_a_shared_prompt_gives_the_same_log_probabilities_as_two_copies(tiny: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    from cai.train.batches import can_share, completion_logps, shared_pairs, stacked_pairs, sum_by_arm
    from cai.train.data import PairRow, Renderer, load_tokenizer

    renderer = Renderer(load_tokenizer(str(tiny)))
    texts = [("a b c", "one", "two three four"), ("d", "red red cat dog", "e f")]
    examples = [renderer.example(PairRow("p", message(p), c, r, 1.0, 0.0)) for p, c, r in texts]
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)
    sums = []
    for layout in (shared_pairs, stacked_pairs):
        batch = layout(examples, 2)
        sums.append(torch.cat(sum_by_arm(completion_logps(model, batch, fused=False), batch)))
    assert sums[0].tolist() == pytest.approx(sums[1].tolist(), abs=1e-5)
    by_hand = model(torch.tensor([examples[0].prompt_ids + examples[0].completions[0]])).logits.log_softmax(-1)
    start = len(examples[0].prompt_ids)
    expected = sum(by_hand[0, start - 1 + i, t].item() for i, t in enumerate(examples[0].completions[0]))
    assert sums[0][0].item() == pytest.approx(expected, abs=1e-5)
    assert can_share(model, examples, 2)
    model.config._attn_implementation = "eager"
    assert not can_share(model, examples, 2)


# --- training -----------------------------------------------------------------------------------------------------


def test_dpo_learns_a_planted_preference(tiny: Path, tmp_path: Path) -> None:
    from cai.train import dpo

    path = write(tmp_path / "pairs.jsonl", planted_pairs(96))
    said: list[dict[str, Any]] = []
    settings = DpoSection.model_validate({**SETTINGS, "epochs": 4.0, "learning_rate": 0.01, "sft_weight": 0.2})
    result = dpo.train(
        path, str(tiny), tmp_path / "out", settings, seed=1, device="cpu", on_step=said.append, manifest={"phase": "rl"}
    )
    held_out = margins(tiny, result.path, planted_pairs(40, seed=9))
    assert sum(m > 0 for m in held_out) >= 38 and sum(held_out) / 40 > 0.5
    steps = [row for row in said if row["step"]]
    assert [row["step"] for row in steps] == list(range(1, 49)) and steps[-1]["loss"] < steps[0]["loss"] - 0.1
    assert steps[-1]["eta_s"] == 0 and all(row["tokens_per_s"] > 0 and row["lr"] > 0 for row in steps[1:])
    assert said[0]["step"] == 0 and max(row["reference_rows"] for row in said if not row["step"]) == 96
    manifest = json.loads((tmp_path / "out" / "checkpoint.json").read_text())
    assert manifest["phase"] == "rl" and manifest["n_rows"] == 96 and manifest["dtype"] in ("float32", "bfloat16")
    assert manifest["loss_last"] == steps[-1]["loss"] and manifest["pair_set_id"].startswith("b2:")
    left = {p.relative_to(tmp_path / "out").as_posix() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert {"checkpoint.json", "curve.jsonl", "adapter/adapter_model.safetensors"} <= left
    assert not [name for name in left if name.endswith((".bin", ".pt", ".pth", ".md"))]


def test_sft_learns_its_rows_with_all_weights(tiny: Path, tmp_path: Path) -> None:
    from cai.train import sft

    rows = [{"prompt": message(f"say {w}"), "completion": f"{w} {w}", "id": w} for w in WORDS[:8]]
    path = write(tmp_path / "sft.jsonl", rows)
    settings = SftSection.model_validate({**SETTINGS, "epochs": 60.0, "lora": None})
    result = sft.train(path, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32")
    assert result.path.name == "model" and result.manifest["loss_last"] < 0.5 * result.manifest["loss_first"]
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(result.path)
    asked = tokenizer.apply_chat_template(message("say c"), add_generation_prompt=True, return_tensors="pt")
    model = AutoModelForCausalLM.from_pretrained(result.path)
    written = model.generate(**asked, max_new_tokens=4, do_sample=False)
    assert tokenizer.decode(written[0, asked["input_ids"].shape[1] :]) == "c c <end>"


def test_a_finished_checkpoint_is_kept_and_never_taken_for_another(tiny: Path, tmp_path: Path) -> None:
    from cai.train import dpo

    path = write(tmp_path / "pairs.jsonl", planted_pairs(8))
    settings = DpoSection.model_validate({**SETTINGS, "epochs": 1.0})
    first = dpo.train(path, str(tiny), tmp_path / "out", settings, device="cpu")
    again = dpo.train(path, str(tiny), tmp_path / "out", settings, device="cpu")
    assert again.reused and not first.reused and again.manifest == first.manifest
    with pytest.raises(UserError, match="other settings"):
        dpo.train(path, str(tiny), tmp_path / "out", settings.model_copy(update={"beta": 0.5}), device="cpu")
    write(path, planted_pairs(9))
    with pytest.raises(UserError, match="other rows_id, pair_set_id"):
        dpo.train(path, str(tiny), tmp_path / "out", settings, device="cpu")
    write(path, planted_pairs(8))
    weights = first.path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(TrainError, match="bytes expected; the checkpoint is damaged"):
        dpo.train(path, str(tiny), tmp_path / "out", settings, device="cpu")
    manifest = tmp_path / "out" / "checkpoint.json"
    manifest.write_bytes(manifest.read_bytes()[:50])
    with pytest.raises(TrainError, match="checkpoint.json: not whole .*; the checkpoint is damaged"):
        dpo.train(path, str(tiny), tmp_path / "out", settings, device="cpu")
    with pytest.raises(UserError, match="pairs.jsonl: no folder can be made here"):
        dpo.train(path, str(tiny), path, settings, device="cpu")


def test_a_loss_that_is_not_finite_stops_with_the_rows(tiny: Path, tmp_path: Path) -> None:
    from cai.train import sft

    rows = [{"prompt": message("a"), "completion": w, "id": f"row-{w}"} for w in WORDS[:8]]
    path = write(tmp_path / "sft.jsonl", rows)
    settings = SftSection.model_validate({**SETTINGS, "learning_rate": 1e38, "epochs": 3.0, "warmup": 0.0})
    with pytest.raises(TrainError, match=r"the loss is not finite at step \d; the rows of this batch: row-\w+, row-"):
        sft.train(path, str(tiny), tmp_path / "out", settings, device="cpu", dtype="float32")
    assert not (tmp_path / "out" / "checkpoint.json").exists()


# --- stopped and gone on with --------------------------------------------------------------------------------------


def test_state_that_would_run_code_or_is_half_written_is_not_resumed(tiny: Path, tmp_path: Path) -> None:
    import threading

    from cai.train import sft
    from cai.train.job import Interrupted

    rows = [{"prompt": message("a"), "completion": w, "id": w} for w in WORDS[:32]]
    path = write(tmp_path / "sft.jsonl", rows)
    settings = SftSection.model_validate({**SETTINGS, "save_steps": 1})
    stop = threading.Event()
    out = tmp_path / "out"

    def train() -> Any:
        return sft.train(
            path,
            str(tiny),
            out,
            settings,
            device="cpu",
            dtype="float32",
            stop=stop,
            on_step=lambda row: row["step"] == stop_at and stop.set(),
        )

    stop_at: int | None = 3
    with pytest.raises(Interrupted, match="stopped at step 3 of 8"):
        train()
    stop.clear()
    stop_at = None
    state = out / "state" / "checkpoint-3"
    assert (state / "seal.json").exists() and not list(state.glob("*.bin"))

    class Evil:
        def __reduce__(self) -> Any:
            return (os.mkdir, (str(tmp_path / "ran"),))

    kept = (state / "optimizer.pt").read_bytes()
    (state / "optimizer.pt").write_bytes(pickle.dumps(Evil()))
    seal = json.loads((state / "seal.json").read_text())
    (state / "seal.json").write_text(json.dumps({**seal, "optimizer.pt": (state / "optimizer.pt").stat().st_size}))
    with pytest.raises(TrainError, match="holds more than numbers"):
        train()
    assert not (tmp_path / "ran").exists()
    (state / "optimizer.pt").write_bytes(kept)  # the seal now names another size: this state counts as cut short
    assert train().manifest["steps"] == 8
    assert [json.loads(line)["step"] for line in (out / "curve.jsonl").open()] == list(range(1, 9))


def test_ctrl_c_stops_a_training_file_after_the_step_in_progress(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from cai.cli import main
    from cai.train.telemetry import Trackers

    rows, file = write(tmp_path / "rows.jsonl", planted_pairs(32)), tmp_path / "train.yaml"
    settings = "train: {device: cpu, dtype: float32, dpo: {save_steps: 99, max_steps: 4}}"
    file.write_text(f"method: dpo\nbase: {tiny}\nrows: {rows}\nout: {tmp_path / 'out'}\n{settings}\n")

    def pressed(self: Trackers, row: dict[str, Any]) -> None:
        if row["step"] == 2:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Trackers, "send", pressed)
    assert main(["train", str(file)]) == 130 and signal.getsignal(signal.SIGINT) is before
    said = capsys.readouterr().err
    assert "reference: 32 rows" in said and "stopped at step 2 of 4; the same command goes on there" in said
    monkeypatch.undo()
    assert main(["train", str(file)]) == 0
    assert [row["step"] for row in curve(tmp_path / "out")] == [1, 2, 3, 4]
    assert "step 2/4" not in capsys.readouterr().err


def test_a_kill_just_before_the_manifest_costs_no_training(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cai.train import checkpoint, sft

    rows = [{"prompt": message("a"), "completion": w, "id": w} for w in WORDS[:16]]
    path = write(tmp_path / "sft.jsonl", rows)
    settings = SftSection.model_validate(SETTINGS)
    out = tmp_path / "out"
    write_atomically = checkpoint.write_atomically

    def dies(target: Path, content: Any) -> None:
        if target.name == "checkpoint.json":
            raise KeyboardInterrupt
        write_atomically(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            sft.train(path, str(tiny), out, settings, device="cpu")
    assert (out / "adapter").exists() and not (out / "checkpoint.json").exists()
    made: list[Any] = []
    result = sft.train(path, str(tiny), out, settings, device="cpu", on_step=made.append)
    assert not made and not result.reused and (out / "checkpoint.json").exists()
    assert [json.loads(line)["step"] for line in (out / "curve.jsonl").open()] == [1, 2, 3, 4]


def test_a_spec_that_cannot_be_used_exits_2(tmp_path: Path) -> None:
    from cai.train.run import read_spec

    spec = tmp_path / "spec.json"
    spec.write_text('{"method": "sgd", "rows": "", "base": "", "out": "", "settings": {}}')
    with pytest.raises(UserError, match="unknown method 'sgd'; expected one of sft, dpo"):
        read_spec(spec)
    spec.write_text('{"method": "dpo"}')
    with pytest.raises(UserError, match="the spec has no rows, base, out, settings"):
        read_spec(spec)
