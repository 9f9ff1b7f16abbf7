"""Prompts and requests that several tests send to the scripted server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp

from cai.engine.bytetokens import ByteTokenizer
from cai.engine.scripted import ScriptedServer

FENCE = "bcdfghjklm"
TOKENIZER = ByteTokenizer()
PRINCIPLES = [f"Which answer is better in respect {i}?" for i in range(60)]
SHORT, LONG = "Wash it in cold water.", "First soak it for an hour, then wash it in cold water, and at last dry it."


def pair_text(a: str, b: str, fence: str = FENCE) -> str:
    return (
        f"<<conversation {fence}>>\nuser: How do I wash wool?\n<<end conversation {fence}>>\n\n"
        f"<<answer A {fence}>>\n{a}\n<<end answer A {fence}>>\n\n"
        f"<<answer B {fence}>>\n{b}\n<<end answer B {fence}>>\n\n"
    )


def judge_messages(a: str, b: str, principle: str) -> list[dict[str, str]]:
    tail = f"Principle: {principle}\nReply with A or B."
    return [{"role": "system", "content": "You compare answers."}, {"role": "user", "content": pair_text(a, b) + tail}]


def judge_prompt(a: str, b: str, principle: str = PRINCIPLES[0]) -> str:
    return TOKENIZER.render(judge_messages(a, b, principle))


def with_server(work: Callable[[aiohttp.ClientSession, ScriptedServer], Awaitable[Any]], **script: Any) -> Any:
    async def run() -> Any:
        async with ScriptedServer(**script) as server, aiohttp.ClientSession(server.url) as client:
            return await work(client, server)

    return asyncio.run(run())


async def post(client: aiohttp.ClientSession, path: str, **body: Any) -> dict[str, Any]:
    async with client.post(path, json=body) as reply:
        assert reply.status == 200, await reply.text()
        return await reply.json()


async def refusal(client: aiohttp.ClientSession, path: str, **body: Any) -> tuple[int, dict[str, Any]]:
    async with client.post(path, json=body) as reply:
        return reply.status, (await reply.json())["error"]


def scored(prompt: Any, **more: Any) -> dict[str, Any]:
    """The body of a /v1/completions request that asks for the options' log-probabilities."""
    labels = {"logprobs": 2, "logprob_token_ids": [65, 66], "return_tokens_as_token_ids": True}
    return {"prompt": prompt, "max_tokens": 1, "temperature": 0, **labels, **more}


def p_a_of(choice: dict[str, Any]) -> float:
    top = choice["logprobs"]["top_logprobs"][0]
    a, b = math.exp(top["token_id:65"]), math.exp(top["token_id:66"])
    return a / (a + b)


async def outcome(client: aiohttp.ClientSession, prompt: str = "Hello") -> str:
    """What became of one request: a status, or the name of the client's error."""
    try:
        async with client.post("/v1/completions", json=scored(prompt)) as reply:
            await reply.json()
            return str(reply.status)
    except (aiohttp.ClientError, ValueError) as error:
        return type(error).__name__
