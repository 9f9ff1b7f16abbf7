from __future__ import annotations

import math
from typing import Any

import aiohttp
import pytest

from cai.engine.bytetokens import END_OF_TEXT
from cai.engine.scripted import ScriptedServer
from tests.scripted_asks import (
    FENCE,
    LONG,
    PRINCIPLES,
    SHORT,
    TOKENIZER,
    judge_messages,
    judge_prompt,
    p_a_of,
    post,
    refusal,
    scored,
    with_server,
)


def test_all_roads_give_the_same_probability() -> None:
    messages = judge_messages(SHORT, LONG, PRINCIPLES[3])
    prompt = TOKENIZER.render(messages)
    query, item = prompt.split("Principle:")
    item = f"Principle:{item}"

    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> set[str]:
        chat = await post(
            client, "/v1/chat/completions", messages=messages, max_tokens=1, logprobs=True, top_logprobs=5
        )
        top = {t["token"]: math.exp(t["logprob"]) for t in chat["choices"][0]["logprobs"]["content"][0]["top_logprobs"]}
        p_a = [top["A"] / (top["A"] + top["B"])]
        ids = TOKENIZER.encode(prompt)
        for form in (prompt, [prompt], ids, [ids], [[END_OF_TEXT, *ids]]):
            p_a.append(p_a_of((await post(client, "/v1/completions", **scored(form)))["choices"][0]))
        for q, i in ((query, item), (TOKENIZER.encode(query), TOKENIZER.encode(item))):
            reply = await post(client, "/generative_scoring", query=q, items=[i], label_token_ids=[65, 66])
            p_a.append(reply["data"][0]["score"])
        return {f"{p:.12f}" for p in p_a}

    assert len(with_server(ask, judge="coherent")) == 1


def test_a_batch_answers_each_prompt_as_if_it_came_alone() -> None:
    prompts = [TOKENIZER.encode(judge_prompt(SHORT, LONG, principle)) for principle in PRINCIPLES[:16]]

    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        together = await post(client, "/v1/completions", **scored(prompts))
        alone = [await post(client, "/v1/completions", **scored([prompt])) for prompt in prompts]
        assert [c["index"] for c in together["choices"]] == list(range(16))
        assert [p_a_of(c) for c in together["choices"]] == [p_a_of(reply["choices"][0]) for reply in alone]
        assert together["usage"]["prompt_tokens"] == sum(len(prompt) for prompt in prompts)

    with_server(ask, judge="random")


def test_replies_have_vllms_shapes() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        prompt = judge_prompt(SHORT, LONG)
        reply = await post(client, "/v1/completions", **scored(prompt))
        assert set(reply) == set(
            "id object created model choices service_tier system_fingerprint usage kv_transfer_params "
            "ec_transfer_params metrics".split()
        )
        choice = reply["choices"][0]
        assert set(choice) == set(
            "index text logprobs finish_reason stop_reason token_ids prompt_logprobs prompt_token_ids "
            "routed_experts".split()
        )
        assert (choice["text"], choice["finish_reason"]) == ("A", "length")
        assert choice["logprobs"]["tokens"] == ["token_id:65"]
        assert list(choice["logprobs"]["top_logprobs"][0]) == ["token_id:65", "token_id:66"]
        tokens = len(prompt)
        assert reply["usage"] == {
            "prompt_tokens": tokens,
            "total_tokens": tokens + 1,
            "completion_tokens": 1,
            "prompt_tokens_details": None,
            "completion_tokens_details": None,
        }
        chat = await post(client, "/v1/chat/completions", messages=[{"role": "user", "content": "Hi"}], n=2)
        assert chat["object"] == "chat.completion" and [c["index"] for c in chat["choices"]] == [0, 1]
        message = chat["choices"][0]["message"]
        assert message["role"] == "assistant" and chat["choices"][0]["finish_reason"] == "stop"
        assert chat["usage"]["completion_tokens"] == sum(len(c["message"]["content"]) + 1 for c in chat["choices"])
        score = await post(client, "/generative_scoring", query=prompt, items=["", " "], label_token_ids=[65, 66])
        assert [set(row) for row in score["data"]] == [{"index", "object", "score"}] * 2

    with_server(ask, judge="always-a")


def test_sampled_verdicts_follow_the_probabilities() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> list[str]:
        body = scored(judge_prompt(SHORT, LONG), temperature=1.0, n=400)
        return [choice["text"] for choice in (await post(client, "/v1/completions", **body))["choices"]]

    texts = with_server(ask, judge="tie")
    assert 140 <= texts.count("A") <= 260


def test_generated_text_can_be_scored_again() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        made = (await post(client, "/v1/completions", prompt="Hello", max_tokens=40, logprobs=0))["choices"][0]
        body = {"prompt": "Hello" + made["text"], "max_tokens": 1, "prompt_logprobs": 0}
        again = (await post(client, "/v1/completions", **body))["choices"][0]["prompt_logprobs"]
        assert again[0] is None
        told = [next(iter(step.values()))["logprob"] for step in again[len("Hello") :]]
        assert told == made["logprobs"]["token_logprobs"]
        echoed = await post(client, "/v1/completions", prompt="Hello", max_tokens=0, echo=True, logprobs=1)
        assert echoed["choices"][0]["text"] == "Hello"
        assert echoed["choices"][0]["logprobs"]["token_logprobs"][1:] == [
            step[str(byte)]["logprob"] for step, byte in zip(again[1:5], b"ello", strict=True)
        ]

    with_server(ask)


def test_limits_end_a_text_as_they_do_in_vllm() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        full = (await post(client, "/v1/completions", prompt="Hello", max_tokens=900))["choices"][0]
        assert full["finish_reason"] == "stop" and full["text"].endswith((".", *"abcdefghijklmnopqrstuvwxyz"))
        cut = (await post(client, "/v1/completions", prompt="Hello"))["choices"][0]
        assert (cut["text"], cut["finish_reason"]) == (full["text"][:16], "length")
        word = full["text"].split()[1]
        stopped = (await post(client, "/v1/completions", prompt="Hello", max_tokens=900, stop=word))["choices"][0]
        assert stopped["text"] == full["text"].partition(word)[0] and stopped["stop_reason"] == word

    with_server(ask)


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("/v1/completions", {"prompt": "x" * 101}, 400, "maximum context length is 100 tokens"),
        ("/v1/completions", {"prompt": "x" * 100}, 400, "max_tokens must be at least 1"),
        ("/v1/completions", {"prompt": [[1], [2] * 101]}, 400, "contains 101 input tokens"),
        ("/v1/completions", {"prompt": "x", "max_tokens": 101}, 400, "cannot be greater than max_model_len=100"),
        ("/v1/completions", {"prompt": ""}, 400, "must be provided and non-empty"),
        ("/v1/completions", {"prompt": [300]}, 400, "out of vocabulary"),
        ("/v1/completions", {"prompt": "x", "logprob_token_ids": [65]}, 400, "`logprobs` must be set"),
        ("/v1/completions", {"prompt": "x", "logprobs": 21}, 400, "greater than max allowed: 20"),
        ("/v1/completions", {"prompt": "x", "stream": True}, 400, "does not stream"),
        ("/v1/completions", {"prompt": "x", "model": "other"}, 404, "`other` does not exist"),
        ("/v1/completions", {"prompt": "x", "temperature": 0, "n": 2}, 400, "n must be 1"),
        ("/v1/chat/completions", {"messages": "x"}, 400, "messages must be a list"),
        ("/v1/chat/completions", {"messages": [], "top_logprobs": 2}, 400, "`logprobs` must be set to true"),
        ("/generative_scoring", {"query": "x", "items": [], "label_token_ids": [65]}, 400, "at least one item"),
        ("/generative_scoring", {"query": "x", "items": ["y"], "label_token_ids": [999]}, 400, "out of vocabulary"),
    ],
)
def test_what_vllm_refuses_is_refused_in_its_words(path: str, body: dict[str, Any], status: int, says: str) -> None:
    got, error = with_server(lambda client, _: refusal(client, path, **body), max_model_len=100)
    assert got == error["code"] == status
    assert says in error["message"]
    assert set(error) == {"message", "type", "param", "code"}


def test_scoring_cuts_what_exceeds_the_context_without_a_word() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        prompt = judge_prompt(SHORT, LONG)
        whole = await post(client, "/generative_scoring", query="", items=[prompt], label_token_ids=[65, 66])
        assert whole["usage"]["prompt_tokens"] == len(prompt) > 400
        longer = await post(client, "/generative_scoring", query="x" * 800, items=[prompt], label_token_ids=[65, 66])
        assert longer["usage"]["prompt_tokens"] == 899
        assert longer["data"] != whole["data"]

    with_server(ask, max_model_len=900)


def test_scores_of_other_options_are_probabilities() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        prompt = f"<<answer {FENCE}>>\nHi\n<<end answer {FENCE}>>\nRate it from 1 to 9."
        for labels in (list(b"123456789"), list(b"YN"), list(b"ab"), [77]):
            body = scored(prompt, logprobs=len(labels), logprob_token_ids=labels)
            top = (await post(client, "/v1/completions", **body))["choices"][0]["logprobs"]["top_logprobs"][0]
            mass = sum(math.exp(top[f"token_id:{label}"]) for label in labels)
            assert 0.0 < mass <= 1.0
            assert mass > 0.99 or len(labels) == 1

    with_server(ask)


def test_adapters_become_models_that_write_differently() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        adapter = {"lora_name": "round-1", "lora_path": "checkpoints/round-1"}
        async with client.post("/v1/load_lora_adapter", json=adapter) as reply:
            assert await reply.text() == "Success: LoRA adapter 'round-1' added successfully."
        assert (await refusal(client, "/v1/load_lora_adapter", **adapter))[0] == 400
        async with client.get("/v1/models") as reply:
            models = (await reply.json())["data"]
        assert [(m["id"], m["parent"], m["max_model_len"]) for m in models] == [
            ("scripted", None, 16384),
            ("round-1", "scripted", None),
        ]
        base, tuned = [
            await post(client, "/v1/completions", prompt="Hello", model=m["id"], max_tokens=500) for m in models
        ]
        assert base["choices"][0]["text"] != tuned["choices"][0]["text"]
        async with client.post("/v1/unload_lora_adapter", json=adapter) as reply:
            assert reply.status == 200
        assert (await refusal(client, "/v1/completions", prompt="Hello", model="round-1"))[0] == 404

    with_server(ask)


def test_a_sleeping_server_does_not_answer_until_woken() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        async with client.post("/sleep?level=2") as reply:
            assert await reply.json() == {"status": "sleeping", "level": 2}
        assert (await refusal(client, "/v1/completions", prompt="Hello"))[0] == 503
        async with client.post("/wake_up") as reply:
            assert await reply.json() == {"status": "awake", "tags": None}
        async with client.get("/is_sleeping") as reply:
            assert await reply.json() == {"is_sleeping": False}
        await post(client, "/v1/completions", prompt="Hello")

    with_server(ask)


def test_tokenize_and_detokenize_are_inverse() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        made = await post(client, "/tokenize", messages=[{"role": "user", "content": "Grüße"}])
        assert made["count"] == len(made["tokens"]) and made["max_model_len"] == 16384
        back = await post(client, "/detokenize", tokens=made["tokens"])
        assert back["prompt"] == TOKENIZER.render([{"role": "user", "content": "Grüße"}])

    with_server(ask)


def test_keys_tell_repeated_prompts_apart_from_repeated_requests() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        one, two = judge_prompt(SHORT, LONG), judge_prompt(LONG, SHORT)
        await post(client, "/v1/completions", **scored([one, two]))
        await post(client, "/v1/completions", **scored([two]))
        async with client.get("/stats?keys") as reply:
            stats = await reply.json()
        assert (stats["bodies"]["distinct"], stats["bodies"]["repeated"]) == (2, 0)
        assert (stats["asks"]["distinct"], stats["asks"]["repeated"]) == (2, 1)
        assert sorted(stats["asks"]["counts"].values()) == [1, 2]
        assert (stats["prompts"], stats["judged"], stats["requests"]["/v1/completions"]) == (3, 3, 2)

    with_server(ask, count_keys=True)


def test_metrics_health_and_unknown_paths() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        await post(client, "/v1/completions", prompt="Hello", max_tokens=3)
        async with client.get("/metrics") as reply:
            assert 'vllm:generation_tokens_total{model_name="scripted"} 3\n' in await reply.text()
        for method, path, status in (
            ("GET", "/health", 200),
            ("GET", "/version", 200),
            ("GET", "/nowhere", 404),
            ("GET", "/v1/completions", 405),
        ):
            async with client.request(method, path) as reply:
                assert reply.status == status

    with_server(ask)
