"""A viewer that serves on a free port in a thread, and a plain client that says exactly what it is told to say.

with serving(runs, reviewers=("anna",)) as served:
    served.get("/runs/one")
"""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cai.store import schema
from cai.view import Opened, open_door, server_of
from cai.view.site import Site


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text)


@dataclass
class Served:
    """A running viewer."""

    opened: Opened
    site: Site
    _cookies: dict[str, str] = field(default_factory=dict)

    @property
    def port(self) -> int:
        return int(self.opened.listening.getsockname()[1])

    @property
    def origin(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def cookie(self, visitor: str = "owner") -> str:
        """Return the cookie that the visitor's URL is turned into."""
        if visitor not in self._cookies:
            token = self.opened.urls[visitor].partition("token=")[2]
            answer = self.ask("GET", f"/?token={token}", {})
            assert answer.status == 303, answer
            self._cookies[visitor] = answer.headers["set-cookie"].partition(";")[0]
        return self._cookies[visitor]

    def ask(self, method: str, path: str, headers: Mapping[str, str | list[str]], body: bytes = b"") -> Answer:
        """Send one request; only the headers given are sent, and Host where it is not among them."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
            for name, values in headers.items():
                for value in [values] if isinstance(values, str) else values:
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            came = connection.getresponse()
            text = came.read().decode("utf-8", "replace")
            return Answer(came.status, {k.lower(): v for k, v in came.getheaders()}, text)
        finally:
            connection.close()

    def get(self, path: str, visitor: str = "owner") -> Answer:
        """Ask as the visitor's browser does."""
        return self.ask("GET", path, {"Cookie": self.cookie(visitor)})

    def post(self, path: str, body: Any, visitor: str = "owner", **changes: str | None) -> Answer:
        """Write as the page's script does; `changes` replace headers, None leaves one out."""
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers: dict[str, str | None] = {
            "Cookie": self.cookie(visitor),
            "Origin": self.origin,
            "X-Cai-View": "1",
            "Content-Type": "application/json",
            "Content-Length": str(len(raw)),
        }
        headers |= {name.replace("_", "-"): value for name, value in changes.items()}
        return self.ask("POST", path, {k: v for k, v in headers.items() if v is not None}, raw)


@contextmanager
def serving(path: Path, *, reviewers: tuple[str, ...] = ()) -> Iterator[Served]:
    """Serve the runs at `path` for the owner `owner` and these reviewers."""
    opened = open_door("127.0.0.1", 0, owner="owner", reviewers=reviewers)
    site = Site(path)
    server = server_of(site, opened)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [opened.listening]}, name="viewer")
    thread.start()
    try:
        yield Served(opened, site)
    finally:
        server.should_exit = True
        thread.join()
        opened.listening.close()
        site.close()


def content_of(run: Path) -> str:
    """Return a hash of everything a run's store and folder hold."""
    connection = schema.connect(run / "store.sqlite", readonly=True)
    try:
        digest = hashlib.sha256("\n".join(connection.iterdump()).encode())
    finally:
        connection.close()
    for path in sorted(run.rglob("*")):
        if path.is_file() and "store.sqlite" not in path.name:
            digest.update(str(path.relative_to(run)).encode() + path.read_bytes())
    return digest.hexdigest()
