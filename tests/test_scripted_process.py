from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from typing import Any

import aiohttp
import psutil
import pytest

from cai.engine.scripted import ScriptedProcess, ScriptedServer
from cai.engine.scripted.wire import MAX_BODY_BYTES
from cai.errors import EngineError
from tests.scripted_asks import (
    LONG,
    SHORT,
    judge_prompt,
    outcome,
    p_a_of,
    post,
    scored,
    with_server,
)

RAW = b"POST /tokenize HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 15\r\n\r\n" + (
    b'{"prompt":"hi"}'
)
CHUNKED = (
    b"POST /tokenize HTTP/1.1\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    b'5\r\n{"pro\r\na;x=1\r\nmpt":"hi"}\r\n0\r\n\r\n'
)


async def talk(server: ScriptedServer, *pieces: bytes, n_replies: int) -> list[bytes]:
    """Send pieces over one connection, each by itself, and return the replies' first lines and bodies."""
    reader, writer = await asyncio.open_connection(*server.url.removeprefix("http://").split(":"))
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    replies = []
    for _ in range(n_replies):
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        replies.append(head.partition(b"\r\n")[0] + b" " + await reader.readexactly(length))
    writer.close()
    return replies


@pytest.mark.parametrize("request_bytes", [RAW, CHUNKED], ids=["plain", "chunked"])
def test_requests_are_read_however_they_are_cut_or_joined(request_bytes: bytes) -> None:
    async def ask(_: aiohttp.ClientSession, server: ScriptedServer) -> None:
        pieces = [request_bytes[i : i + 1] for i in range(len(request_bytes))]
        expected = b'HTTP/1.1 200 OK {"count":2,"max_model_len":16384,"tokens":[104,105],"token_strs":null}'
        assert await talk(server, *pieces, n_replies=1) == [expected]
        assert await talk(server, request_bytes * 3, n_replies=3) == [expected] * 3

    with_server(ask)


@pytest.mark.parametrize(
    "junk",
    [
        b"hello\r\n\r\n",
        b"GET / SMTP\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        b"POST /x HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % (MAX_BODY_BYTES + 1),
        b"POST /x HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"x" * 70_000,
    ],
)
def test_what_is_no_request_gets_400_and_a_closed_connection(junk: bytes) -> None:
    async def ask(_: aiohttp.ClientSession, server: ScriptedServer) -> None:
        assert (await talk(server, junk, n_replies=1))[0].startswith(b"HTTP/1.1 400 ")

    with_server(ask)


def test_a_body_that_is_no_json_object_is_refused() -> None:
    async def ask(client: aiohttp.ClientSession, _: ScriptedServer) -> None:
        for body, kind in ((b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain")):
            async with client.post("/v1/completions", data=body, headers={"Content-Type": kind}) as reply:
                assert reply.status == 400 and "error" in await reply.json()

    with_server(ask)


def test_a_process_serves_counts_and_ends_at_once_on_sigterm() -> None:
    with ScriptedProcess(judge="shorter", count_keys=True, models=("one", "two")) as server:
        asyncio.run(_ask_once(server.url, judge_prompt(SHORT, LONG)))
        assert server.stats()["judged"] == 1
        assert server.stats()["asks"]["distinct"] == 1
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0


async def _ask_once(url: str, prompt: str) -> None:
    async with aiohttp.ClientSession(url) as client:
        reply = await post(client, "/v1/completions", **scored(prompt))
        assert reply["model"] == "one" and p_a_of(reply["choices"][0]) > 0.6


def test_two_processes_answer_alike() -> None:
    async def text(url: str) -> dict[str, Any]:
        async with aiohttp.ClientSession(url) as client:
            return await post(client, "/v1/completions", prompt="Hello", max_tokens=500, n=3, logprobs=2)

    with ScriptedProcess(seed=5) as one, ScriptedProcess(seed=5) as two:
        assert asyncio.run(text(one.url)) == asyncio.run(text(two.url))


def test_a_process_that_dies_by_its_script_is_gone_with_an_exit_code() -> None:
    async def ask(url: str) -> list[str]:
        async with aiohttp.ClientSession(url) as client:
            return [await outcome(client) for _ in range(3)]

    with ScriptedProcess(faults="die@2") as server:
        first, *others = asyncio.run(ask(server.url))
        assert first == "200" and "200" not in others
        assert server.process.wait(10) == 1


def test_a_process_does_not_outlive_its_parent() -> None:
    parent = (
        "import os, signal, sys; from cai.engine.scripted import ScriptedProcess; server = ScriptedProcess();"
        "server.start(); print(server.process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True)
    assert told.returncode == -signal.SIGKILL
    pid = int(told.stdout)
    try:
        psutil.Process(pid).wait(20)
    except psutil.NoSuchProcess:
        pass
    assert not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_a_process_that_cannot_start_says_why() -> None:
    with pytest.raises(EngineError, match="is no rule"), ScriptedProcess(judge="shortest"):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(EngineError, match="choose another --port"), ScriptedProcess(port=taken.getsockname()[1]):
            pass
    with pytest.raises(TypeError):
        ScriptedProcess(rule="shorter")


def test_help_documents_every_rule_and_fault() -> None:
    command = [sys.executable, "-m", "cai.engine.scripted", "--help"]
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"COLUMNS": "120"}, check=True)
    for word in (
        "shorter",
        "by-principle:",
        "accuracy:P",
        "retry-after",
        "hang-health-ok",
        "busy>N",
        "nologprobs",
        "--parent-pid",
    ):
        assert word in told.stdout
