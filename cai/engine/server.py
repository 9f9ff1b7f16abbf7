"""Servers that a run starts: vLLM (CUDA or CPU build) or the scripted stand-in, each in processes of its own.

A server is recorded with its process id and start time in `servers.json`, so that a resumed run can stop what an
earlier one left, and nobody else's. Its keeper (`cai.engine.keeper`) ends it when the run is gone.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from cai.config import EngineSection
from cai.engine import command as commands
from cai.engine.command import Command
from cai.engine.keeper import start_time
from cai.errors import EngineError
from cai.manifest import write_atomically

_LOG_LINES = 20
_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_MEMORY = (
    "out of memory|OutOfMemory|MemoryError|less than (desired|requested)|[Nn]o available memory|KV cache is needed"
)
_HINTS = (
    (
        _MEMORY,
        "it does not get the memory it asks for; lower engine.memory_gib (CPU), engine.gpu_memory_utilization (GPU) or "
        "engine.max_model_len, or end what else takes the memory",
    ),
    (
        "rchitectures.* not supported|does not recognize this architecture",
        "its vLLM does not know this model; take a newer vLLM, engine.kind=transformers or another model",
    ),
    (
        "trust[_-]remote[_-]code",
        "the model comes with Python code of its own; read it, then set trust_remote_code: true beside its name (on a "
        "command line: --trust-remote-code)",
    ),
    ("ddress already in use", "its port was taken meanwhile; run the same command again"),
    ("No space left on device", "the disk is full; free space and run the same command again"),
    ("unrecognized arguments|error: argument", "it does not take the arguments it was given; mend engine.args"),
)
"""What a server may say when it cannot start, and what to do then."""


class Server:
    """One server process, reachable at `url` while it is up."""

    def __init__(
        self, command: Command, port: int, *, engine: EngineSection, run_dir: Path, name: str, identity: str
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.model_name = command.model_name
        self.log = run_dir / "logs" / f"server-{name}.log"
        self.n_starts = 0
        self._adapters: dict[str, Path] = {}
        self._command = command
        self._engine, self._run_dir, self._name, self._identity = engine, run_dir, name, identity
        self._process: subprocess.Popen[bytes] | None = None
        self._log_from = 0

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    async def launch(self) -> None:
        """Start the process and wait until it serves. Raises EngineError with the log's end where it does not."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        us = os.getpid()
        keeper = [sys.executable, "-m", "cai.engine.keeper", str(us), str(start_time(us)), "--"]
        with open(self.log, "ab") as log:
            self._log_from = log.tell()
            self._process = subprocess.Popen(
                [*keeper, *self._command.arguments],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._command.environment,
                start_new_session=True,
            )
        self.n_starts += 1
        _record(self._run_dir, self._name, self._entry())
        await self._until_ready()
        for name, folder in self._adapters.items():
            await self._load(name, folder)

    async def load_adapter(self, name: str, folder: Path) -> None:
        """Serve a LoRA adapter as `name` beside the model, from now on and after every restart. EngineError if not."""
        if name not in self._adapters:
            await self._load(name, folder)
            self._adapters[name] = folder

    async def unload_adapter(self, name: str) -> None:
        """Serve an adapter no longer."""
        if self._adapters.pop(name, None) and self.is_running:
            await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def _load(self, name: str, folder: Path) -> None:
        status, said = await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if status != 200:
            raise EngineError(
                f"the server for {self._name} does not take the adapter {folder} ({status}: {said[:300]}); "
                "set engine.adapters=merge"
            )

    async def _post(self, path: str, payload: dict[str, str]) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=self._engine.request_timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            async with session.post(self.url + path, json=payload) as response:
                return response.status, await response.text(errors="replace")

    async def stop(self) -> None:
        """End the server and everything it started."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(self._process.wait)
        _record(self._run_dir, self._name, None)

    async def revive(self, *, hung: bool = False) -> None:
        """Start it again on the same port if it has died, or if it is taken for hung."""
        if hung:
            await self.stop()
        if not self.is_running:
            await self.launch()

    def _entry(self) -> dict[str, Any]:
        assert self._process is not None
        return {
            "pid": self._process.pid,
            "started": start_time(self._process.pid),
            "url": self.url,
            "identity": self._identity,
            "command": self._command.arguments,
        }

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + self._engine.start_timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await _serves(session, self.url, self.model_name):
                if not self.is_running:
                    raise EngineError(f"the server for {self._name} ended while starting{self._last_words()}")
                if time.monotonic() > deadline:
                    await self.stop()
                    raise EngineError(
                        f"the server for {self._name} was not ready within "
                        f"{self._engine.start_timeout_s:.0f} s (engine.start_timeout_s){self._last_words()}"
                    )
                await asyncio.sleep(0.1)

    def _last_words(self) -> str:
        """Return why it failed, where that is known, and the end of what it said since it was started."""
        with open(self.log, "rb") as log:
            log.seek(self._log_from)
            said = _CONTROL.sub("", log.read().decode(errors="replace").replace("\r", "\n"))
        why = next((f": {hint}" for cause, hint in _HINTS if re.search(cause, said)), "")
        # The first error is the engine's own; whoever waited for it complains after that, at length.
        causes = re.findall(r"\w*Error: .*", said)[:1]
        lines = [*causes, *said.splitlines()[-_LOG_LINES:], f"(all of it: {self.log})"]
        return f"{why}\n" + "\n".join(f"  {line}" for line in lines)


async def start(
    checkpoint: str,
    engine: EngineSection,
    *,
    run_dir: Path,
    name: str,
    identity: str,
    revision: str | None = None,
    trust_remote_code: bool = False,
    adapters: commands.Adapters | None = None,
    sleeps: bool = False,
) -> Server:
    """Start a server for `checkpoint` (a folder or hub id) and return it when it serves.

    With `adapters` it takes such LoRA adapters later on; with `sleeps` it can leave its GPU to a
    training for a while (see `cai.engine.sleeping`).
    """
    await asyncio.to_thread(stop_leftovers, run_dir, name)
    port = _free_port()
    if engine.kind == "scripted":
        command = commands.scripted(engine, port)
    else:
        command = await asyncio.to_thread(
            commands.vllm,
            checkpoint,
            engine,
            port,
            revision=revision,
            trust_remote_code=trust_remote_code,
            adapters=adapters,
            sleeps=sleeps,
        )
    server = Server(command, port, engine=engine, run_dir=run_dir, name=name, identity=identity)
    try:
        await server.launch()
    except BaseException:
        await server.stop()
        raise
    return server


def stop_leftovers(run_dir: Path, name: str | None = None) -> None:
    """Stop servers that an earlier owner of this run recorded and that still live: that pid with that start time."""
    for recorded, entry in _recorded(run_dir).items():
        if name not in (None, recorded):
            continue
        if start_time(entry["pid"]) == entry["started"] is not None:
            try:
                os.kill(entry["pid"], signal.SIGTERM)
                psutil.Process(entry["pid"]).wait(15)
            except (ProcessLookupError, psutil.Error):
                pass
        _record(run_dir, recorded, None)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _serves(session: aiohttp.ClientSession, url: str, model_name: str) -> bool:
    """Return whether the server at `url` answers, and lists our model: a stranger on the port does not count."""
    try:
        async with session.get(f"{url}/v1/models") as response:
            listed = (await response.json())["data"] if response.status == 200 else []
            return any(model["id"] == model_name for model in listed)
    except (aiohttp.ClientError, TimeoutError, ValueError, LookupError, TypeError):
        return False


def _recorded(run_dir: Path) -> dict[str, dict[str, Any]]:
    path = run_dir / "servers.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _record(run_dir: Path, name: str, entry: dict[str, Any] | None) -> None:
    entries = _recorded(run_dir)
    entries.pop(name, None)
    if entry is not None:
        entries[name] = entry
    write_atomically(run_dir / "servers.json", json.dumps(entries, indent=1))
