"""The real server that benchmarks ask, and the conductor's door to it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from cai.config import EngineSection, ModelSection
from cai.engine import server as servers
from cai.engine.client import Client
from cai.engine.reach import load_tokens
from cai.engine.transport import Endpoint
from cai.model.fetch import resolve

MODEL = "smollm2-135m-instruct"
SETTINGS = {"max_model_len": 2048, "memory_gib": 2}


@asynccontextmanager
async def started(folder: Path, name: str = "bench") -> AsyncIterator[servers.Server]:
    """Give a fresh vLLM server of the embedded model; it ends with the block."""
    server = await servers.start(resolve(MODEL), EngineSection(**SETTINGS), run_dir=folder, name=name, identity=MODEL)
    try:
        yield server
    finally:
        await server.stop()


@asynccontextmanager
async def client_of(server: servers.Server, **engine: object) -> AsyncIterator[Client]:
    """Give a client of a server, with these settings of the engine section."""
    settings = EngineSection(**(SETTINGS | engine))  # type: ignore[arg-type]
    endpoint = Endpoint(server.url, settings)
    await endpoint.open()
    try:
        tokens = load_tokens(ModelSection(checkpoint=MODEL), settings)
        yield Client([endpoint], settings, identity=MODEL, name=server.model_name, tokenizer=tokens)
    finally:
        await endpoint.close()
