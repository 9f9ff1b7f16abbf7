"""The viewer: a run's decisions as pages to read, and its review queue as a page to work in."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import uvicorn

from cai.errors import UserError
from cai.view.app import make_app
from cai.view.guard import Door, Visitor
from cai.view.site import Site

__all__ = ["Opened", "open_door", "serve", "server_of"]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LEAST_TOKEN = 24
"""Characters that a token from the environment must have at least."""


@dataclass(frozen=True)
class Opened:
    """A door that listens."""

    door: Door
    listening: socket.socket
    urls: dict[str, str]
    """For each visitor the URL that lets them in, token and all."""


def open_door(
    host: str, port: int, *, owner: str, reviewers: Sequence[str] = (), token: str | None = None, tls: bool = False
) -> Opened:
    """Listen, and make the tokens. Raises UserError for an address that may not or cannot be had.

    On an address that others can reach, `token` must be given and the connection encrypted: whoever reads it on the
    way is let in. Port 0 takes any that is free.
    """
    if host not in LOOPBACK and not (token and tls):
        raise UserError(
            f"found host '{host}', which others can reach; expected {' or '.join(LOOPBACK)}. Reach it through "
            "`ssh -L`, or set CAI_VIEW_TOKEN and give --tls-cert and --tls-key"
        )
    if token is not None and (len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable()):
        raise UserError(
            f"found a CAI_VIEW_TOKEN of {len(token)} characters, expected at least {LEAST_TOKEN} of plain ASCII; make "
            "one with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
        )
    listening = _listen(host, port)
    port = listening.getsockname()[1]
    scheme = "https" if tls else "http"
    names = [host] if host not in LOOPBACK else ["127.0.0.1", "localhost"] if host != "::1" else ["[::1]"]
    first = token or secrets.token_urlsafe(32)
    visitors = {first: Visitor(owner, reviews_only=False)}
    visitors |= {secrets.token_urlsafe(32): Visitor(name, reviews_only=True) for name in reviewers}
    origins = [f"{scheme}://{name}:{port}" for name in names]
    door = Door(frozenset(origins), visitors, f"cai_view_{port}")
    urls = {visitor.name: f"{origins[0]}/?token={key}" for key, visitor in visitors.items()}
    return Opened(door, listening, urls)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    made: socket.socket | None = None
    try:
        made = socket.socket(family, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(128)
    except (OSError, OverflowError) as error:
        if made is not None:
            made.close()
        why = getattr(error, "strerror", None) or error
        raise UserError(f"{host}:{port}: cannot listen ({why}); give another --host, or --port 0 for any") from None
    return made


def serve(
    path: str | Path,
    opened: Opened,
    *,
    certificate: tuple[str, str] | None = None,
    when_ready: Callable[[], None] = lambda: None,
) -> None:
    """Serve the runs at `path` until interrupted. The door is closed afterwards, whatever happened."""
    with opened.listening, closing(Site(path)) as site:
        server = server_of(site, opened, certificate)
        when_ready()
        server.run(sockets=[opened.listening])


def server_of(site: Site, opened: Opened, certificate: tuple[str, str] | None = None) -> uvicorn.Server:
    """Return the server of a site. It writes no log: addresses in it would hold what people search for."""
    cert, key = certificate or (None, None)
    config = uvicorn.Config(
        make_app(site, opened.door),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        lifespan="off",
        ssl_certfile=cert,
        ssl_keyfile=key,
        timeout_graceful_shutdown=3,
    )
    return uvicorn.Server(config)
