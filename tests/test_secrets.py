"""A key is in the environment and in the requests, and nowhere else, however a server quotes it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from cai.config import EngineSection
from cai.engine.transport import Endpoint
from cai.errors import EngineError, RejectedError
from tests import runs

CANARY = "canary-5ecret-0f3a9b"


class Echo(BaseHTTPRequestHandler):
    """Lists one model, and refuses everything else with what it was sent."""

    heard: list[str]

    def do_GET(self) -> None:
        self._say(200, {"data": [{"id": f"model {self._key()}", "max_model_len": 4096}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.heard.append(self._key())
        self._say(400, {"error": {"message": f"no, '{self._key()}' may not: {dict(self.headers)}"}})

    def _key(self) -> str:
        return self.headers.get("Authorization", "")

    def _say(self, status: int, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Key", self._key())
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Elsewhere(Echo):
    """Sends everybody to another host."""

    there: str

    def do_GET(self) -> None:
        self.send_response(307)
        self.send_header("Location", self.there)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.do_GET()


@contextmanager
def served(kind: type[Echo], **settings: object) -> Iterator[tuple[str, list[str]]]:
    heard: list[str] = []
    handler = type("Handler", (kind,), {"heard": heard, **settings})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", heard
        finally:
            server.shutdown()
            thread.join()


def test_a_key_that_a_server_quotes_is_kept_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_TEST_KEY", CANARY)
    runs.write_inputs(tmp_path, n_prompts=4)
    with served(Echo) as (url, heard):
        tree = runs.config(tmp_path, url=url, models__policy__api_key_env="CAI_TEST_KEY")
        path = runs.write_config(tmp_path, tree)
        run = runs.cai("run", path, check=3)
    done = [run, *(runs.cai(*words, check=None) for words in (("status", tmp_path / "runs/run"), ("plan", path)))]
    assert any(CANARY in key for key in heard), "the key was sent"
    said = runs.cai("status", tmp_path / "runs" / "run", "--json").stdout
    assert "may not" in said, "what the server said is told"
    assert not any(CANARY in text for one in done for text in (one.stdout, one.stderr, said))
    files = [file for file in tmp_path.rglob("*") if file.is_file()]
    assert len(files) > 10 and [file for file in files if CANARY.encode() in file.read_bytes()] == []


@pytest.mark.parametrize("scheme", ["http", "ftp"])
def test_a_url_with_credentials_is_refused_before_anything_is_written(tmp_path: Path, scheme: str) -> None:
    runs.write_inputs(tmp_path, n_prompts=2)
    path = runs.write_config(tmp_path, runs.config(tmp_path, url=f"{scheme}://me:{CANARY}@127.0.0.1:9"))
    for command in ("run", "plan"):
        said = runs.cai(command, path, check=2)
        assert CANARY not in said.stdout + said.stderr and "api_key_env" in said.stderr
    assert not (tmp_path / "runs").exists()


def test_a_key_does_not_follow_a_redirect_to_another_host() -> None:
    async def ask(url: str) -> None:
        endpoint = Endpoint(url, EngineSection(retries=0), api_key=CANARY)
        await endpoint.open()
        try:
            with pytest.raises((RejectedError, EngineError)):
                await endpoint.post("/v1/chat/completions", {})
            assert await endpoint.get("/v1/models") is None
            assert await endpoint._tokens_made() is None
        finally:
            await endpoint.close()

    with served(Echo) as (there, heard), served(Elsewhere, there=there) as (url, _):
        asyncio.run(ask(url))
        assert heard == []


def command_lines() -> list[bytes]:
    """Return the command lines of all processes, as everybody on the machine can read them."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):  # it has ended meanwhile
            found.append(path.read_bytes())
    return found


class Looking(Echo):
    """Refuses as Echo does, and looks at the process list meanwhile."""

    seen: list[bytes]

    def do_POST(self) -> None:
        self.seen.extend(command_lines())
        super().do_POST()


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc, which lists the processes")
def test_a_key_is_in_no_command_line_of_what_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CAI_TEST_KEY", CANARY)
    runs.write_inputs(tmp_path, n_prompts=2)
    seen: list[bytes] = []
    with served(Looking, seen=seen) as (url, heard):
        judge = {"base_url": [url], "api_key_env": "CAI_TEST_KEY"}
        tree = runs.config(tmp_path, models__judge=judge)
        done = runs.cai("run", runs.write_config(tmp_path, tree), "--quiet", apart=True, check=3)
    assert any(CANARY in key for key in heard), "the key was sent"
    started = [line for line in seen if str(tmp_path).encode() in line or b"cai.engine" in line]
    assert any(b"cai.engine.scripted" in line for line in started), "a server of ours was up"
    assert any(b"run.yaml" in line for line in started), "and so was the run"
    assert [line for line in seen if CANARY.encode() in line] == []
    assert CANARY not in done.stdout + done.stderr
