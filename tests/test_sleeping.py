"""One GPU for server and trainer: servers sleep while the trainer has it, and are awake when they are asked."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cai.config import EngineSection, PpoSection
from cai.engine import command, server, sleeping
from cai.engine.command import Adapters
from cai.engine.local import Start
from cai.errors import EngineError
from cai.train.loop import Loop
from tests.tiny import make_model


def test_a_server_that_sleeps_takes_at_most_half_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(command, "build", lambda: "cuda")
    base = str(make_model(tmp_path))
    plain, sleeps = (command.vllm(base, EngineSection(), 1, sleeps=sleeps) for sleeps in (False, True))
    assert plain.arguments[plain.arguments.index("--gpu-memory-utilization") + 1] == "0.85"
    assert sleeps.arguments[sleeps.arguments.index("--gpu-memory-utilization") + 1] == "0.5"
    assert "--enable-sleep-mode" in sleeps.arguments and "--enable-sleep-mode" not in plain.arguments
    assert sleeps.environment["VLLM_SERVER_DEV_MODE"] == "1"


def test_a_server_is_awake_for_as_long_as_it_is_asked(tmp_path: Path) -> None:
    async def asleep(url: str) -> bool:
        async with aiohttp.ClientSession() as session, session.get(f"{url}/is_sleeping") as answer:
            return (await answer.json())["is_sleeping"]

    async def walk() -> list[bool]:
        engine = EngineSection(kind="scripted")
        started = await server.start("x", engine, run_dir=tmp_path, name="judge", identity="x")
        try:
            await sleeping.sleep(started.url)
            seen = [await asleep(started.url)]
            async with sleeping.awake([started.url]):
                seen.append(await asleep(started.url))
            seen.append(await asleep(started.url))
            with pytest.raises(EngineError, match="answered 405"):
                await sleeping.post(started.url, "/v1/models")
        finally:
            await started.stop()
        with pytest.raises(EngineError, match="cannot be reached.*lower engine.gpu_memory_utilization"):
            await sleeping.wake(started.url)
        return seen

    assert asyncio.run(walk()) == [True, False, True]


class Doors:
    """A server that notes at which of its doors was knocked, and writes the same answer to whoever asks."""

    def __init__(self) -> None:
        self.knocks: list[str] = []
        self.models: set[str] = set()

    async def answer(self, request: web.Request) -> web.Response:
        if not self.knocks or self.knocks[-1] != request.path:
            self.knocks.append(request.path)
        if request.path == "/v1/completions":
            self.models.add((await request.json())["model"])
            return web.json_response({"choices": [{"token_ids": [5, 2]}], "usage": {}})
        return web.json_response({})


@pytest.fixture
def doors() -> Iterator[tuple[Doors, str]]:
    there, loop = Doors(), Loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", there.answer)
    runner = web.AppRunner(app)

    async def serve() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"http://{host}:{port}"

    yield there, loop.run(serve())
    loop.run(runner.cleanup())
    loop.close()


@pytest.mark.filterwarnings("ignore")
def test_a_gpu_server_is_given_the_adapter_and_sleeps_between_its_answers(
    doors: tuple[Doors, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from cai.train import served
    from cai.train.rollouts import InProcess

    there, url = doors
    started: dict[str, Any] = {}

    async def start(checkpoint: str, engine: EngineSection, **told: Any) -> Any:
        started.update(told, checkpoint=checkpoint)
        return SimpleNamespace(url=url, model_name="model", stop=lambda: asyncio.sleep(0))

    monkeypatch.setattr(served.servers, "start", start)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,4")
    base = make_model(tmp_path / "base")
    settings = PpoSection.model_validate({"lora": {"r": 4}, "rollouts": "vllm"})
    folder = SimpleNamespace(out=tmp_path, state=tmp_path / "state")
    asked = {"settings": settings, "base": str(base), "trust_remote_code": False, "resume": None}
    job: Any = SimpleNamespace(folder=folder, device="cuda", **asked)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=4, task_type="CAUSAL_LM"))
    writer = served.Served(job, model, InProcess(model, frozenset((2,))), EngineSection(), frozenset((2,)), None)
    try:
        for step in (0, 1, 2):
            writer.update(step)
            assert writer.write([Start([1], 0), Start([1, 4], 1)], 3) == [[5, 2], [5, 2]]
    finally:
        writer.close()
    first = ["/v1/completions", "/sleep"]
    second = ["/wake_up", "/v1/load_lora_adapter", "/v1/completions", "/sleep"]
    third = ["/wake_up", "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/completions", "/sleep"]
    assert there.knocks == first + second + third and there.models == {"model", "step-1", "step-2"}
    assert started["sleeps"] and started["adapters"] == Adapters(4) and started["checkpoint"] == str(base)
    assert started["trust_remote_code"] is False
    assert served.own_gpu(1) == "1", "of what this process may see now, which is the first of the two"
