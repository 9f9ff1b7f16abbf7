"""A server behind the client's seam to it, without HTTP, and what it is asked in the tests of the client."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from typing import Any

from cai.config import EngineSection
from cai.engine.client import Client
from cai.engine.level import Level
from cai.engine.model import ScoreGroup
from cai.engine.tokens import ByteTokens
from cai.errors import RejectedError
from cai.templates import Turn

CHAT, IDS, SHARES = "/v1/chat/completions", "/v1/completions", "/generative_scoring"


class Stub:
    """A server that holds what it is asked until `answer` lets it go, and notes it."""

    is_up = True

    def __init__(self, url: str, answer: Callable[[str, dict[str, Any]], Awaitable[Any]], most: int = 64) -> None:
        self.url, self._answer = url, answer
        self.level = Level(most)
        self.asked: list[tuple[str, dict[str, Any]]] = []

    async def post(self, path: str, payload: dict[str, Any], *, follows: bool = False) -> tuple[Any, int, float]:
        await self.level.acquire(follows=follows)
        try:
            self.asked.append((path, payload))
            return await self._answer(path, payload), 1, 0.01
        finally:
            self.level.release()

    @property
    def questions(self) -> list[str]:
        """The chats it was asked, by pair and principle."""
        return [f"{p['messages'][0]['content']}{p['messages'][1]['content']}" for path, p in self.asked if path == CHAT]

    @property
    def roads(self) -> list[str]:
        """The roads by which it was asked, in order."""
        return [path for path, _ in self.asked]


def group(pair: str = "a", n: int = 4, *, mass: bool = True) -> ScoreGroup:
    """Return what is asked of a judge about one pair: `n` principles, named by their numbers."""
    tails = tuple((Turn("user", str(i)), Turn("assistant", "It is answer")) for i in range(n))
    return ScoreGroup((Turn("user", pair),), tails, ("A", "B"), mass)


def client(*stubs: Stub, max_len: int | None = None, **settings: Any) -> Client:
    """Return a client of some stubs, whose tokenizer is known."""
    tokens = ByteTokens(max_len)
    return Client(stubs, EngineSection(**settings), identity="m", name="m", tokenizer=tokens)  # type: ignore[arg-type]


async def sound(path: str, payload: dict[str, Any]) -> dict[str, Any]:
    """Answer as a server does that knows every road: A with probability 0.9."""
    await asyncio.sleep(0)
    logprobs = {"A": math.log(0.9), "B": math.log(0.1)}
    if path == SHARES:
        return {"data": [{"index": i, "score": 0.9} for i in range(len(payload["items"]))]}
    if path == CHAT:
        listed = [{"token": letter, "logprob": lp} for letter, lp in logprobs.items()]
        message = {"role": "assistant", "content": "A"}
        return {"choices": [{"index": 0, "message": message, "logprobs": {"content": [{"top_logprobs": listed}]}}]}
    if "logprobs" not in payload:
        return {"choices": [{"index": 0, "text": "Yes.", "finish_reason": "stop"}]}
    table = {f"token_id:{ord(letter)}": lp for letter, lp in logprobs.items()}
    return {
        "choices": [
            {"index": i, "text": "A", "logprobs": {"top_logprobs": [table]}} for i in range(len(payload["prompt"]))
        ]
    }


async def refused(path: str, payload: dict[str, Any]) -> Any:
    """Answer as an older server that refuses fields it does not know."""
    if path != CHAT:
        raise RejectedError("400 extra fields not permitted", status=400)
    return await sound(path, payload)


async def passed_over(path: str, payload: dict[str, Any]) -> Any:
    """Answer as an older server that passes over fields it does not know."""
    found = await sound(path, payload)
    if path == IDS:
        for choice in found["choices"]:
            choice["logprobs"] = {"top_logprobs": [{"A": -0.1, "The": -2.5}]}
    return found
