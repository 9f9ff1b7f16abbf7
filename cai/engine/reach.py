"""How the model that a config section names is reached: over servers that run already, or in this process."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack
from typing import Any

from cai.config import EngineSection, ModelSection
from cai.engine.client import Client
from cai.engine.model import Model
from cai.engine.replicas import look
from cai.engine.transport import Endpoint
from cai.errors import UserError
from cai.model.fetch import resolve

BYTES = "bytes"
"""The tokenizer of the scripted server, whose tokens are bytes."""


async def connect(
    section: ModelSection, engine: EngineSection, *, identity: str, tokenizer: str | None
) -> tuple[Client, list[Endpoint]]:
    """Return a client of the servers at `section.base_url`, and the ways to them, which the caller closes.

    `tokenizer` is as `tokenizer_of` names it. Raises UserError where the API key's environment variable is not set.
    """
    key = _api_key(section)
    endpoints = [Endpoint(url, engine, api_key=key) for url in section.base_url]
    async with AsyncExitStack() as opened:
        for endpoint in endpoints:
            await endpoint.open()
            opened.push_async_callback(endpoint.close)
        served = await look(endpoints, section.served_name)
        tokens = _read(tokenizer, section, engine, served.max_len)
        opened.pop_all()  # nothing failed: they stay open
    if tokens is not None:
        served = served._replace(max_len=tokens.max_len)  # what requests are held to, whoever is asked
    client = Client(endpoints, engine, identity=identity, name=served.name, tokenizer=tokens, served=served)
    return client, endpoints


def load_here(section: ModelSection, engine: EngineSection, *, identity: str) -> Model:
    """Return the model of `section.checkpoint`, loaded into this process."""
    from cai.engine.local import LocalModel

    how = {"revision": section.revision, "trust_remote_code": section.trust_remote_code}
    return LocalModel.load(resolve(str(section.checkpoint)), engine, identity=identity, **how)


def tokenizer_of(section: ModelSection, engine: EngineSection) -> str | None:
    """Return where the tokenizer of a model is; None where only its server knows it."""
    if engine.kind == "scripted" and not section.base_url:
        return BYTES
    source = section.tokenizer or section.checkpoint
    return resolve(source) if source else None


def load_tokens(section: ModelSection, engine: EngineSection) -> Any | None:
    """Return the tokenizer of a model that we serve; None where only its server knows it."""
    return _read(tokenizer_of(section, engine), section, engine)


def _read(tokenizer: str | None, section: ModelSection, engine: EngineSection, length: int | None = None) -> Any | None:
    """Return a tokenizer that knows the context: the least of its own, that of the servers and the config's."""
    from cai.engine.tokens import ByteTokens, Tokens

    if tokenizer is None:
        return None
    if tokenizer == BYTES:
        return ByteTokens(max_len=engine.max_model_len)
    tokens = Tokens.load(tokenizer, section.revision, trust_remote_code=section.trust_remote_code)
    # What the config says is about servers that we start.
    limits = [n for n in (tokens.max_len, length, None if section.base_url else engine.max_model_len) if n]
    tokens.max_len = min(limits) if limits else None
    return tokens


def _api_key(section: ModelSection) -> str | None:
    if section.api_key_env is None:
        return None
    key = os.environ.get(section.api_key_env)
    if not key:
        raise UserError(f"environment variable '{section.api_key_env}' (models.….api_key_env) is not set; export it")
    return key
