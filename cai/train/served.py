"""Answers from a vLLM server that follows the policy.

On a CPU the merged weights are written into a folder and the server is told to read them again: with `--enable-lora` a
CPU server would answer about half as fast. On a GPU the adapter alone is written and loaded beside the base, and the
server sleeps while the trainer, which has the same GPU, scores and trains.
"""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState

from cai.config import EngineSection
from cai.engine import server as servers
from cai.engine import sleeping
from cai.engine.command import Adapters
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
        self._me = PartialState().local_process_index
        self._folder = job.folder.state / (f"served-{self._me}" if self._me else "served")
        self._hot = loads_adapter(job)
        self._shares_gpu, self._is_awake = job.device == "cuda", True
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
        engine = engine.model_copy(update={"kind": "vllm"})
        # It only opens doors on the loopback address, to whoever may run programs here anyway.
        os.environ["VLLM_SERVER_DEV_MODE"] = "1"
        if self._shares_gpu:
            os.environ["CUDA_VISIBLE_DEVICES"] = own_gpu(self._me)
        out = self._job.folder.out
        self._server = await servers.start(
            self._job.base if self._hot else str(self._folder),
            engine,
            run_dir=out / f"process-{self._me}" if self._me else out,
            name="rollouts",
            identity="policy in training",
            trust_remote_code=self._job.trust_remote_code,
            adapters=Adapters(lora.r) if self._hot and lora else None,
            sleeps=self._shares_gpu,
        )
        self._endpoint = Endpoint(self._server.url, engine)
        await self._endpoint.open()

    def update(self, step: int) -> None:
        """As Writer. The server forgets what it has read with earlier weights."""
        if step == self._step:
            return
        self._rouse()
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
        await sleeping.post(self._server.url, "/v1/load_lora_adapter", load)
        if self._loaded is not None:
            await sleeping.post(self._server.url, "/v1/unload_lora_adapter", {"lora_name": self._loaded})
            shutil.rmtree(self._folder / self._loaded)
        self._loaded = name

    async def _reload(self) -> None:
        await sleeping.post(self._server.url, "/collective_rpc", {"method": "reload_weights"})
        await sleeping.post(self._server.url, "/reset_prefix_cache", {})

    def write(self, starts: Sequence[Start], max_new_tokens: int) -> list[list[int]]:
        """As Writer; all prompts are in flight at once."""
        self._rouse()
        written = self._loop.run(self._write_all(starts, max_new_tokens))
        if self._shares_gpu:
            self._loop.run(sleeping.sleep(self._server.url))
            self._is_awake = False
        return written

    def _rouse(self) -> None:
        if not self._is_awake:
            torch.cuda.empty_cache()  # what the trainer holds and does not use is the server's to take
            self._loop.run(sleeping.wake(self._server.url))
            self._is_awake = True

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


def loads_adapter(job: Job) -> bool:
    """Return whether the server is given the adapter by itself, and not merged weights."""
    return job.device == "cuda" and job.settings.lora is not None


def own_gpu(process: int) -> str:
    """Return the GPU that a process of this machine trains on, as CUDA_VISIBLE_DEVICES names it."""
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    return visible[process] if process < len(visible) else str(process)
