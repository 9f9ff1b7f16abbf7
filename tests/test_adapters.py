"""LoRA layers that add in place give peft's numbers, and stay peft's where they would not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny import make_model
from tests.training import one_thread

__all__ = ["one_thread"]
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("tiny"))


def adapted(tiny: Path, **changes: Any) -> Any:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = changes.pop("dtype", torch.float32)
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=dtype)
    torch.manual_seed(1)
    config = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, **changes)
    return get_peft_model(model, config)


def swapped(model: Any) -> int:
    from cai.train.adapters import InPlace

    return sum(isinstance(layer, InPlace) for layer in model.modules())


def test_output_and_gradients_are_those_of_peft(tiny: Path) -> None:
    import torch

    from cai.train.adapters import in_place

    ids = torch.randint(3, 40, (2, 9), generator=torch.Generator().manual_seed(0))
    told = []
    for model in (adapted(tiny), in_place(adapted(tiny))):
        logits = model(ids).logits
        logits.log_softmax(-1)[..., 5].sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        with torch.no_grad(), model.disable_adapter():
            plain = model(ids).logits
        told.append([logits, plain, *gradients])
    assert len(told[0]) == 2 + 2 * swapped(in_place(adapted(tiny))) == 2 + 2 * 7 * 2
    for theirs, ours in zip(*told, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.1}, {"use_dora": True}, {"dtype": "bfloat16"}])
def test_what_is_no_plain_adapter_stays_as_it_is(changes: dict[str, Any], tiny: Path) -> None:
    from cai.train.adapters import in_place

    assert swapped(in_place(adapted(tiny, **changes))) == 0


def test_a_merged_adapter_is_the_same_weights(tiny: Path) -> None:
    import torch

    from cai.train.adapters import in_place

    theirs, ours = (model.merge_and_unload() for model in (adapted(tiny), in_place(adapted(tiny))))
    for name, weight in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], weight)


def test_an_adapter_that_cannot_be_merged_is_sampled_through(tiny: Path) -> None:
    """As over a base in 4 bits: the answers are those of the merged weights."""
    from transformers import AutoModelForCausalLM

    from cai.engine.local import Start
    from cai.train.rollouts import InProcess

    model, stops = adapted(tiny), frozenset((2,))
    merged = InProcess(model, stops, AutoModelForCausalLM.from_pretrained(tiny, dtype="float32"))
    through = InProcess(model, stops)
    starts = [Start([1, 4, 7 + i], seed) for i, seed in enumerate(range(40, 46))]
    written = []
    for writer in (merged, through):
        writer.update(1)
        written.append(writer.write(starts, 6))
    assert written[0] == written[1]


def test_an_adapter_is_merged_into_a_base_of_fewer_digits(tiny: Path) -> None:
    """As on a GPU: what is sampled with is in the base's bfloat16 throughout."""
    import torch
    from transformers import AutoModelForCausalLM

    from cai.engine.local import Start
    from cai.train.rollouts import InProcess

    model, plain = (
        adapted(tiny, dtype=torch.bfloat16),
        AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16),
    )
    before = plain.model.layers[0].self_attn.q_proj.weight.clone()
    writer = InProcess(model, frozenset((2,)), plain)
    writer.update(1)
    assert {weight.dtype for weight in plain.parameters()} == {torch.bfloat16}
    assert not torch.equal(plain.model.layers[0].self_attn.q_proj.weight, before)
    assert len(writer.write([Start([1, 4, 7], 1)], 3)[0]) > 0
