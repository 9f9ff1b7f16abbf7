"""The model in this process: its batches, shared beginnings and padding change nothing that it says."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch

from cai.config import EngineSection
from cai.engine.batches import Batches
from cai.engine.local import Answer, LocalModel, Question, Start, answer_logprobs, continue_all, option_logprobs, pick
from cai.engine.model import Generate, Likelihood, Reply, Sampling, ScoreGroup
from cai.errors import EngineError, RejectedError
from cai.templates import Turn
from cai.trail import RunView
from tests import runs

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PLAIN = Sampling(max_tokens=12)
HEAD = (Turn("user", "Here is a pair of answers: A says yes and B says no."), Turn("assistant", "I have read both."))
TAILS = tuple(
    (Turn("user", f"Principle: {text}"), Turn("assistant", "The better answer is answer"))
    for text in ("short", "kind and clear, whatever was asked before", "true")
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama of a few thousand weights that reads and writes bytes, with ChatML."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    place = tmp_path_factory.mktemp("model")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {piece: i for i, piece in enumerate(["<|im_start|>", "<|im_end|>", *alphabet, "ĠA", "ĠB"])}
    words = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ġ", "A"), ("Ġ", "B")]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<|im_start|>", eos_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(place)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=4096, bos_token_id=0, eos_token_id=1, pad_token_id=1,
        initializer_range=0.3,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def local(folder: Path) -> LocalModel:
    """In float32 on any processor: in bfloat16 a batch rounds otherwise than one row."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cai.engine.local.cpu_multiplies_bfloat16", lambda: False)
        return LocalModel.load(str(folder), EngineSection(kind="transformers"), identity="tiny")


@pytest.fixture(scope="module")
def network(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def gather(*asked: Coroutine[Any, Any, Any]) -> list[Any]:
    async def main() -> list[Any]:
        return list(await asyncio.gather(*asked))

    return asyncio.run(main())


def logprobs_after(network: Any, ids: list[int]) -> torch.Tensor:
    with torch.no_grad():
        return network(torch.tensor([ids])).logits[0].double().log_softmax(-1)


def request(text: str, seed: int, **sampling: float) -> Generate:
    return Generate((Turn("user", text),), Sampling(**{"max_tokens": 12, **sampling}), seed=seed)  # type: ignore[arg-type]


# -- generation ----------------------------------------------------------------------------------------------------


def test_a_batch_does_not_change_what_is_written(local: LocalModel) -> None:
    asked = [request("x" * (7 * i % 40), seed=i) for i in range(12)]
    together = gather(*(local.generate(a) for a in asked))
    alone = [gather(local.generate(a))[0] for a in asked]
    assert [(r.text, r.finish_reason, r.n_completion) for r in together] == [
        (r.text, r.finish_reason, r.n_completion) for r in alone
    ]


def test_the_same_seed_writes_the_same_and_another_something_else(local: LocalModel) -> None:
    first, same, other = gather(*(local.generate(request("hello", seed)) for seed in (1, 1, 2)))
    assert first.text == same.text != other.text


def test_temperature_zero_is_what_transformers_calls_greedy(network: Any) -> None:
    prompts = [[0, 10, 20], [0, 30, 40, 50, 60, 70]]
    ours = continue_all(network, [Start(ids, 0) for ids in prompts], Sampling(10, temperature=0), frozenset())
    for ids, new in zip(prompts, ours, strict=True):
        reference = network.generate(
            torch.tensor([ids]), attention_mask=torch.ones(1, len(ids)), do_sample=False, max_new_tokens=10,
            eos_token_id=None, pad_token_id=1,
        )  # fmt: skip
        assert new == reference[0, len(ids) :].tolist()


def test_a_stop_token_ends_only_its_own_row(network: Any) -> None:
    starts = [Start([0, i], i) for i in range(2, 30)]
    free = continue_all(network, starts, PLAIN, frozenset())
    stop = free[0][3]
    stopped = continue_all(network, starts, PLAIN, frozenset([stop]))
    for whole, cut in zip(free, stopped, strict=True):
        assert cut == (whole[: whole.index(stop) + 1] if stop in whole else whole)


def test_rows_that_have_stopped_are_let_go_of(network: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cai.engine.local as module

    asked, forward = [], module._forward
    monkeypatch.setattr(module, "_forward", lambda m, ids, *rest: asked.append(len(ids)) or forward(m, ids, *rest))
    starts = [Start([0, *range(2, 3 + i % 5)], i) for i in range(16)]
    free = continue_all(network, starts, PLAIN, frozenset())
    assert set(asked) == {16}
    asked.clear()
    stops = frozenset(token for row in free[:12] for token in row[2:4])
    cut = continue_all(network, starts, PLAIN, stops)
    ends = [next((i + 1 for i, token in enumerate(row) if token in stops), len(row)) for row in free]
    assert cut == [row[:end] for row, end in zip(free, ends, strict=True)]
    left = [sum(end > done for end in ends) for done in range(max(ends))]
    assert all(n < 2 * there for n, there in zip(asked[1:], left[1:], strict=True)), "never twice as many as are left"
    assert asked[-1] < 16


def test_why_an_answer_ended_is_told_and_its_stop_token_is_not_in_the_text(local: LocalModel) -> None:
    replies = gather(*(local.generate(request("hello", seed, max_tokens=200)) for seed in range(64)))
    assert {r.finish_reason for r in replies} == {"stop", "length"}
    for reply in replies:
        assert "<|im_end|>" not in reply.text
        assert (reply.n_completion == 200) or reply.finish_reason == "stop"


def test_tokens_are_drawn_with_the_probability_the_model_gives_them() -> None:
    p = torch.tensor([0.5, 0.0, 0.3, 0.2])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    drawn = pick(p.log().expand(1000, 4), Sampling(1), u)
    assert torch.bincount(drawn, minlength=4).tolist() == [500, 0, 300, 200]


@pytest.mark.parametrize(
    ("sampling", "left"),
    [
        (Sampling(1, min_p=0.5), [0, 2]),
        (Sampling(1, min_p=0.7), [0]),
        (Sampling(1, top_p=0.75), [0, 2]),
        (Sampling(1, top_p=0.4), [0]),
        (Sampling(1, min_p=0.1, top_p=0.99), [0, 2, 3]),
        (Sampling(1, temperature=0.0), [0]),
        (Sampling(1, temperature=0.01), [0]),
    ],
)
def test_settings_leave_the_tokens_they_should(sampling: Sampling, left: list[int]) -> None:
    p = torch.tensor([0.5, 0.01, 0.29, 0.2])
    u = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert pick(p.log().expand(1000, 4), sampling, u).unique().tolist() == left


# -- scoring -------------------------------------------------------------------------------------------------------


def test_options_have_the_probability_a_plain_pass_gives_them(network: Any) -> None:
    shared = [0, *range(5, 60)]
    questions = [Question(shared + list(tail), [70, 71]) for tail in ([80], [81, 82, 83, 84], [85, 86])]
    for question, found in zip(questions, option_logprobs(network, questions), strict=True):
        expected = logprobs_after(network, question.ids)[-1, [70, 71]]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_prompts_without_a_shared_beginning_are_scored_alike(network: Any) -> None:
    questions = [Question([0, *range(5, 30)], [70, 71, 72]), Question([0, 9], [70, 72, 71])]
    for question, found in zip(questions, option_logprobs(network, questions), strict=True):
        expected = logprobs_after(network, question.ids)[-1, question.option_ids]
        assert found == pytest.approx(expected.tolist(), abs=1e-5)


def test_a_prompt_that_another_begins_with_is_scored_too(network: Any) -> None:
    ids = [0, *range(5, 60)]
    for question, found in zip(
        questions := [Question(ids, [70]), Question([*ids, 61, 62], [70])],
        option_logprobs(network, questions),
        strict=True,
    ):
        assert found == pytest.approx([float(logprobs_after(network, question.ids)[-1, 70])], abs=1e-5)


def test_a_group_says_what_each_tail_says_alone(local: LocalModel) -> None:
    whole = gather(local.score(ScoreGroup(HEAD, TAILS, ("A", "B"))))[0]
    assert [reply.server for reply in whole] == ["in-process"] * len(TAILS)
    for reply, tail in zip(whole, TAILS, strict=True):
        alone = gather(local.score(ScoreGroup(HEAD, (tail,), ("A", "B"))))[0][0]
        assert reply.logprobs == pytest.approx(alone.logprobs, abs=1e-5)
        assert math.fsum(map(math.exp, reply.logprobs.values())) + reply.outside == pytest.approx(1.0)


def test_an_answer_is_as_likely_as_its_tokens_one_by_one(network: Any) -> None:
    answers = [Answer([0, 5, 6, 7, 8], 2), Answer([0, 9, *range(20, 40)], 20), Answer([0, 5], 1)]
    for answer, found in zip(answers, answer_logprobs(network, answers), strict=True):
        table = logprobs_after(network, answer.ids)
        n = len(answer.ids)
        expected = sum(float(table[t - 1, answer.ids[t]]) for t in range(n - answer.n_answer, n))
        assert found == pytest.approx(expected, abs=1e-4)


def test_likelihood_is_of_the_answer_after_the_conversation(local: LocalModel, network: Any) -> None:
    turns = (Turn("user", "why?"),)
    reply, nothing = gather(*(local.likelihood(Likelihood(turns, text)) for text in ("so it is", "")))
    prompt, answer = local._tokens.prompt_ids(turns, open_final=False), local._tokens.answer_ids("so it is")
    table = logprobs_after(network, prompt + answer)
    expected = sum(float(table[len(prompt) - 1 + i, token]) for i, token in enumerate(answer))
    assert reply.logp == pytest.approx(expected, abs=1e-4)
    assert (reply.n_prompt, reply.n_completion) == (len(prompt), len(answer))
    assert (nothing.logp, nothing.n_completion) == (0.0, 0)


# -- what does not fit, what cannot be loaded ------------------------------------------------------------------------


def test_what_exceeds_the_context_is_refused_and_nothing_is_cut(folder: Path) -> None:
    small = LocalModel.load(str(folder), EngineSection(kind="transformers", max_model_len=150), identity="tiny")
    with pytest.raises(RejectedError, match="150 tokens"):
        gather(small.generate(request("x" * 120, 0)))
    with pytest.raises(RejectedError):
        gather(small.likelihood(Likelihood((Turn("user", "x"),), "y" * 150)))
    long = (Turn("user", "Principle: " + "x" * 100), TAILS[0][1])
    fits, too_long = gather(small.score(ScoreGroup((Turn("user", "a"),), (TAILS[0], long), ("A", "B"))))[0]
    assert fits.logprobs and fits.error is None
    assert too_long.error == "too_long" and too_long.logprobs is None


def test_the_models_own_context_holds_where_it_is_shorter(folder: Path) -> None:
    model = LocalModel.load(str(folder), EngineSection(kind="transformers", max_model_len=8192), identity="tiny")
    with pytest.raises(RejectedError, match="4096 tokens"):
        gather(model.generate(request("x" * 5000, 0)))


def test_pickled_weights_are_not_read(folder: Path, tmp_path: Path) -> None:
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(EngineError, match="cannot load it"):
        LocalModel.load(str(tmp_path), EngineSection(kind="transformers"), identity="tiny")


def test_closing_ends_what_is_at_work_first(folder: Path) -> None:
    model = LocalModel.load(str(folder), EngineSection(kind="transformers"), identity="tiny")

    async def main() -> Reply:
        asked = asyncio.create_task(model.generate(request("hello", 0)))
        await asyncio.sleep(0)  # lets the request reach the model's queue
        reply = await asked
        await model.close()
        return reply

    assert asyncio.run(main()).text is not None
    with pytest.raises(RuntimeError):
        gather(model.generate(request("hello", 0)))


# -- batches -------------------------------------------------------------------------------------------------------


def with_batches(work: Callable[..., Any], use: Callable[[Batches[Any, Any]], Coroutine[Any, Any, Any]]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        return asyncio.run(use(Batches(work, executor, max_items=4, max_cost=100)))


def test_batches_hold_equal_keys_and_keep_to_their_bounds() -> None:
    seen: list[tuple[str, list[int]]] = []

    def work(key: str, items: list[int]) -> list[int]:
        seen.append((key, list(items)))
        return [item * 2 for item in items]

    async def use(batches: Batches[int, int]) -> list[int]:
        widths = [10, 10, 60, 10, 10, 10, 10, 300]
        return await asyncio.gather(*(batches.ask("ab"[i % 2], width, i) for i, width in enumerate(widths)))

    assert with_batches(work, use) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert seen == [("a", [0]), ("b", [1, 3, 5]), ("a", [2]), ("a", [4, 6]), ("b", [7])]


def test_no_more_items_than_allowed_share_a_batch() -> None:
    sizes: list[int] = []

    def work(key: str, items: list[int]) -> list[int]:
        sizes.append(len(items))
        return list(items)

    async def use(batches: Batches[int, int]) -> list[int]:
        return await asyncio.gather(*(batches.ask("a", 1, i) for i in range(10)))

    assert with_batches(work, use) == list(range(10))
    assert sizes == [4, 4, 2]


def test_a_failing_batch_fails_its_own_requests_only() -> None:
    def work(key: str, items: list[int]) -> list[int]:
        if key == "bad":
            raise EngineError("no")
        return list(items)

    async def use(batches: Batches[int, int]) -> list[Any]:
        return await asyncio.gather(*(batches.ask(k, 1, 7) for k in ("good", "bad", "good")), return_exceptions=True)

    good, bad, also_good = with_batches(work, use)
    assert good == also_good == 7 and isinstance(bad, EngineError)


def test_a_request_that_was_given_up_is_not_worked_on() -> None:
    seen: list[int] = []

    def work(key: str, items: list[int]) -> list[int]:
        seen.extend(items)
        return list(items)

    async def use(batches: Batches[int, int]) -> list[Any]:
        tasks = [asyncio.create_task(batches.ask(str(i), 1, i)) for i in range(3)]
        await asyncio.sleep(0)  # all three are in the queue now, none has begun
        tasks[1].cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    first, given_up, last = with_batches(work, use)
    assert (first, last) == (0, 2) and isinstance(given_up, asyncio.CancelledError)
    assert seen == [0, 2]


# -- the whole road --------------------------------------------------------------------------------------------------


def test_a_run_walks_from_prompt_to_verdict_without_a_server(tmp_path: Path, folder: Path) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    tree = runs.config(tmp_path, models={"policy": {"checkpoint": str(folder)}})
    tree["engine"] = {"kind": "transformers"}
    for stage in ("respond", "critique", "revise"):
        tree[stage] = {"max_tokens": 24}
    said = runs.run_json(runs.write_config(tmp_path, tree))
    run = RunView(said["run"])
    asked = [d for end in run.ended("walk") for d in end.decisions if d.call_key]
    assert said["accounting"]["failed"] == 0 and said["accounting"]["comparisons"] == len(list(run.ended("walk"))) > 0
    assert {run.call(d.call_key)[1].server for d in asked} == {"in-process"}
    assert all(set(run.call(d.call_key)[1].logprobs) == {"A", "B"} for d in asked)
    assert not (Path(said["run"]) / "servers.json").exists()
