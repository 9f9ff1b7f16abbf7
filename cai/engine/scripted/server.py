"""The scripted server, inside this process or as one of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from types import TracebackType
from typing import Any, Self
from urllib.request import ProxyHandler, build_opener

import orjson

from cai.engine.scripted.api import Api
from cai.engine.scripted.asking import Script
from cai.engine.scripted.wire import Connection, listener
from cai.errors import EngineError

HOST = "127.0.0.1"
GREETING = "listening on "
_STOP_TIMEOUT_S = 10.0


class ScriptedServer:
    """A scripted server in this event loop: `async with ScriptedServer(judge="shorter") as server: server.url`.

    Keyword arguments are the fields of `Script`; `port` 0 takes a free one.
    """

    def __init__(self, *, port: int = 0, **script: Any) -> None:
        self.api = Api(Script(**script), die=self.die)
        self.url = ""
        """Where it listens, known once it has started."""
        self._port = port
        self._shared = listener(self.api.answer)
        self._listener: asyncio.Server | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen on the loopback interface. A port that is taken raises OSError."""
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(lambda: Connection(self._shared), HOST, self._port, backlog=4096)
        self.url = f"http://{HOST}:{self._listener.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Stop listening and drop every connection."""
        if self._listener is not None:
            self.die()
            await self._listener.wait_closed()

    def die(self) -> None:
        """Be gone at once, as a killed process is: no more replies, connections refused."""
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self._shared.connections):
            connection.abort()

    @property
    def stats(self) -> dict[str, Any]:
        """What `/stats?keys` tells."""
        return self.api.tally.summary(with_keys=True)


class ScriptedProcess:
    """A scripted server in a process of its own: `with ScriptedProcess(judge="shorter") as server: server.url`.

    Keyword arguments are the fields of `Script`. The process ends with this one.
    """

    def __init__(self, *, port: int = 0, **script: Any) -> None:
        flags = [f"--port={port}", f"--parent-pid={os.getpid()}", *_flags(script)]
        self.command = [sys.executable, "-m", "cai.engine.scripted", *flags]
        self.url = ""
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    @property
    def process(self) -> subprocess.Popen[str]:
        """The running process."""
        if self._process is None:
            raise EngineError("the scripted server was not started; call start() or use it in a with statement")
        return self._process

    def start(self) -> None:
        """Start it and wait until it listens. Raises EngineError with its own words if it does not."""
        self._process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line.startswith(GREETING):
            _, problem = self._process.communicate()
            raise EngineError(f"the scripted server did not start: {problem.strip() or line}")
        self.url = line.removeprefix(GREETING)

    def stop(self) -> None:
        """Ask it to end, and wait until it has."""
        process = self.process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """Kill it without warning, and wait until it is gone."""
        self.process.kill()
        self.process.communicate()

    def stats(self) -> dict[str, Any]:
        """Return what `/stats?keys` tells."""
        # No proxy: the environment's may not know the loopback interface.
        with build_opener(ProxyHandler({})).open(f"{self.url}/stats?keys") as reply:
            return orjson.loads(reply.read())


def _flags(script: dict[str, Any]) -> list[str]:
    """Return the command line of `script`. A name that is no field of `Script` raises TypeError."""
    Script(**script)
    flags = []
    for name, value in script.items():
        if name == "models":
            flags += [f"--model={model}" for model in value]
        elif name == "count_keys":
            flags += ["--count-keys"] if value else []
        else:
            flags.append(f"--{name.replace('_', '-')}={value}")
    return flags
