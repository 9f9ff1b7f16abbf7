"""Servers a run starts: they end with it, are started again when they die, and nobody else's are touched."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import aiohttp
import psutil
import pytest

from cai.config import EngineSection
from cai.engine import server as servers
from cai.engine.keeper import start_time
from cai.engine.scripted.server import ScriptedServer
from cai.errors import EngineError

SCRIPTED = EngineSection(kind="scripted")
PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from cai.config import EngineSection
from cai.engine import server as servers

async def main():
    server = await servers.start("x", EngineSection(kind="scripted"), run_dir=Path(sys.argv[1]), name="policy",
                                 identity="x")
    print(server.url, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


def start(folder: Path, engine: EngineSection = SCRIPTED) -> servers.Server:
    return asyncio.run(servers.start("x", engine, run_dir=folder, name="policy", identity="x"))


def listening(url: str) -> bool:
    port = int(url.rsplit(":", 1)[1])
    return any(c.laddr.port == port and c.status == psutil.CONN_LISTEN for c in psutil.net_connections("tcp"))


def until(condition: object, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"


def test_a_stopped_server_is_gone_with_all_its_processes(tmp_path: Path) -> None:
    server = start(tmp_path)
    assert listening(server.url)
    asyncio.run(server.stop())
    assert not listening(server.url)
    assert json.loads((tmp_path / "servers.json").read_text()) == {}


def test_a_server_does_not_outlive_a_killed_run(tmp_path: Path) -> None:
    run = subprocess.Popen([sys.executable, "-c", PROGRAM, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    url = run.stdout.readline().strip()
    assert listening(url)
    run.send_signal(signal.SIGKILL)
    run.communicate()
    until(lambda: not listening(url))


def test_a_dead_server_is_revived_on_its_port(tmp_path: Path) -> None:
    async def main() -> None:
        server = await servers.start("x", SCRIPTED, run_dir=tmp_path, name="policy", identity="x")
        try:
            pid = json.loads((tmp_path / "servers.json").read_text())["policy"]["pid"]
            for child in psutil.Process(pid).children(recursive=True):
                child.kill()
            psutil.Process(pid).wait(10)
            await server.revive()
            assert listening(server.url) and server.n_starts == 2
        finally:
            await server.stop()

    asyncio.run(main())


def test_leftovers_of_this_run_are_stopped_and_strangers_are_not(tmp_path: Path) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    ours = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        entries = {
            "stranger": {"pid": stranger.pid, "started": (start_time(stranger.pid) or 0) - 1},
            "ours": {"pid": ours.pid, "started": start_time(ours.pid)},
        }
        (tmp_path / "servers.json").write_text(json.dumps(entries))
        servers.stop_leftovers(tmp_path)
        assert start_time(ours.pid) is None
        assert stranger.poll() is None
    finally:
        stranger.kill()
        ours.kill()
        stranger.wait()
        ours.wait()


def test_a_server_that_cannot_start_shows_its_last_words(tmp_path: Path) -> None:
    engine = EngineSection(kind="scripted", args=("--judge", "no-such-rule"))
    with pytest.raises(EngineError, match="no-such-rule"):
        start(tmp_path, engine)


def test_why_a_server_could_not_start_is_said_first(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "server-policy.log"
    log.parent.mkdir()
    log.write_text("an earlier start: torch.OutOfMemoryError: CUDA out of memory\n")
    with pytest.raises(EngineError) as caught:
        start(tmp_path, EngineSection(kind="scripted", args=("--no-such-option", "\x1b[31mred\x07")))
    first, *rest = str(caught.value).splitlines()
    assert "engine.args" in first and "memory" not in str(caught.value)
    assert any("--no-such-option" in line for line in rest)
    assert "\x1b" not in str(caught.value) and "\x07" not in str(caught.value)


def test_a_stranger_on_the_port_is_not_taken_for_our_server(tmp_path: Path) -> None:
    async def main() -> bool:
        async with ScriptedServer(models=("theirs",)) as stranger, aiohttp.ClientSession() as session:
            assert await servers._serves(session, stranger.url, "theirs")
            return await servers._serves(session, stranger.url, "ours")

    assert not asyncio.run(main())
