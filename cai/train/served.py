"""Answers from a vLLM server that follows the policy.

On a CPU the merged weights are written into a folder and the server is told to read them again: with `--enable-lora` a
CPU server would answer about half as fast. On a GPU the adapter alone is written and loaded beside the base.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from typing import Any

from cai.config import EngineSection
from cai.engine import server as servers
from cai.engine.local import Start
from cai.engine.transport import Endpoint
from cai.errors import EngineError
from cai.train.job import Job
from cai.train.loop import Loop
from cai.train.rollouts import InProcess


class Served:
    """A vLLM server as Writer. It is ours: started with the training, and gone with it."""

    def __init__(
        self, job: Job, model: Any, merged: InProcess, engine: EngineSection, stops: frozenset[int], tokenizer: Any
    ) -> None:
        """`model` carries the adapter, or is trained whole; `merged` is what an adapter is merged into."""
        self._job, self._model, self._merged, self._stops = job, model, merged, stops
        self._folder = job.folder.state / "served"
        self._hot = job.device == "cuda" and job.settings.lora is not None
        self._loaded: str | None = None
        self._step = -1 if job.resume else 0  # what the server starts with
        self._loop = Loop()
        shutil.rmtree(self._folder, ignore_errors=True)
        if not self._hot:
            merged.update(0)
            merged.save(self._folder)
            tokenizer.save_pretrained(self._folder)
        self._loop.run(self._start(engine))

    async def _start(self, engine: EngineSection) -> None:
        lora = self._job.settings.lora
        further = ("--enable-lora", "--max-lora-rank", str(max(8, lora.r))) if self._hot and lora else ()
        engine = engine.model_copy(update={"kind": "vllm", "args": (*engine.args, *further)})
        # Both only open doors on the loopback address, to whoever may run programs here anyway.
        os.environ |= {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
        checkpoint = self._job.base if self._hot else str(self._folder)
        self._server = await servers.start(
            checkpoint, engine, run_dir=self._job.folder.out, name="rollouts", identity="policy in training"
        )
        self._endpoint = Endpoint(self._server.url, engine)
        await self._endpoint.open()

    def update(self, step: int) -> None:
        """As Writer. The server forgets what it has read with earlier weights."""
        if step == self._step:
            return
        if self._hot:
            name = f"step-{step}"
            self._model.save_pretrained(self._folder / name)
            self._loop.run(self._load(name))
        else:
            self._merged.update(step)
            self._merged.save(self._folder)
            self._loop.run(self._reload())
        self._step = step

    async def _load(self, name: str) -> None:
        load = {"lora_name": name, "lora_path": str(self._folder / name)}
        await self._post("/v1/load_lora_adapter", load)
        if self._loaded is not None:
            await self._post("/v1/unload_lora_adapter", {"lora_name": self._loaded})
            shutil.rmtree(self._folder / self._loaded)
        self._loaded = name

    async def _reload(self) -> None:
        await self._post("/collective_rpc", {"method": "reload_weights"})
        await self._post("/reset_prefix_cache", {})

    async def _post(self, path: str, payload: dict[str, Any]) -> None:
        """Post what is not answered with JSON. Raises EngineError with what the server said."""
        import aiohttp

        async with aiohttp.ClientSession() as session, session.post(self._server.url + path, json=payload) as answer:
            if answer.status >= 300:
                raise EngineError(f"{self._server.url}{path}: answered {answer.status} ({await answer.text()})")

    def write(self, starts: Sequence[Start], max_new_tokens: int) -> list[list[int]]:
        """As Writer; all prompts are in flight at once."""
        return self._loop.run(self._write_all(starts, max_new_tokens))

    async def _write_all(self, starts: Sequence[Start], max_new_tokens: int) -> list[list[int]]:
        return list(await asyncio.gather(*(self._write(start, max_new_tokens) for start in starts)))

    async def _write(self, start: Start, max_new_tokens: int) -> list[int]:
        payload = {
            "model": self._loaded or self._server.model_name,
            "prompt": start.ids,
            "max_tokens": max_new_tokens,
            "temperature": 1.0,
            "seed": start.seed,
            "stop_token_ids": sorted(self._stops),
            "return_token_ids": True,
        }
        answer, _, _ = await self._endpoint.post("/v1/completions", payload)
        ids = (answer.get("choices") or [{}])[0].get("token_ids")
        if not ids:
            raise EngineError(f"{self._server.url}: answered without token ids; PPO needs a vLLM that returns them")
        return list(ids)

    def close(self) -> None:
        """Stop the server."""
        self._loop.run(self._endpoint.close())
        self._loop.run(self._server.stop())
        self._loop.close()
        shutil.rmtree(self._folder, ignore_errors=True)
