"""Servers that leave the GPU to a training between its questions: vLLM's sleep mode.

At level 1 a server keeps its weights in main memory and forgets its cache. It must have been started with
`--enable-sleep-mode` (`cai.engine.command.vllm` with `sleeps`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from cai.errors import EngineError


async def sleep(url: str) -> None:
    """Have a server give its GPU's memory back. Raises EngineError where it does not."""
    await post(url, "/sleep?level=1")


async def wake(url: str) -> None:
    """Have a server take its memory again. Raises EngineError where it does not."""
    try:
        await post(url, "/wake_up")
    except EngineError as error:
        raise EngineError(
            f"{error}; it may not have found its memory again beside the training: lower "
            "engine.gpu_memory_utilization, or the training's micro_batch_size"
        ) from error


@asynccontextmanager
async def awake(urls: Sequence[str]) -> AsyncIterator[None]:
    """Wake servers for as long as the block takes."""
    for url in urls:
        await wake(url)
    try:
        yield
    finally:
        for url in urls:
            await sleep(url)


async def post(url: str, path: str, payload: dict[str, Any] | None = None) -> None:
    """Post what is not answered with JSON. Raises EngineError with what the server said."""
    import aiohttp

    try:
        async with aiohttp.ClientSession() as session, session.post(url + path, json=payload) as answer:
            if answer.status >= 300:
                raise EngineError(f"{url}{path}: answered {answer.status} ({(await answer.text())[:300]})")
    except aiohttp.ClientError as error:
        raise EngineError(f"{url}{path}: cannot be reached ({error})") from error
