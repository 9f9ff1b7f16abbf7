"""The guard: who may ask, from where, and what a browser may do with the answer.

A program on the same machine, a page in another tab and a name that is re-pointed at 127.0.0.1 can all reach a local
port. So a request is answered only if its Host is the address we serve, its Origin (where it has one) is ours, and it
carries the cookie that the printed URL's token was turned into. A write also needs our Origin, a header that no plain
form can send, and JSON. What is served may load nothing but our own script and style.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)
"""What a page may load: nothing but our own script and style."""
HEADERS = {
    "content-security-policy": CSP,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=()",
    "cache-control": "no-store",
}
MOST_BODY_BYTES = 64 * 1024
WRITE_HEADER = "x-cai-view"
"""A write carries it with the value 1. A page of another origin cannot send it without asking first, and is refused."""


@dataclass(frozen=True)
class Visitor:
    """Whom a token was given to."""

    name: str
    """What their votes and overrides are signed with."""
    reviews_only: bool
    """Whether they see the review pages alone, so that nothing leads them."""


@dataclass(frozen=True)
class Door:
    """The addresses that are served and the tokens that open them."""

    origins: frozenset[str]
    """Such as `http://127.0.0.1:8642`, exactly as a browser writes them."""
    tokens: Mapping[str, Visitor]
    """The visitor each token lets in."""
    cookie: str
    """The cookie's name. It holds the port, since cookies are shared by all ports of a host."""
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    @property
    def hosts(self) -> frozenset[str]:
        """The values the Host header may have."""
        return frozenset(origin.partition("://")[2] for origin in self.origins)

    @property
    def is_encrypted(self) -> bool:
        """Whether browsers reach it over TLS only."""
        return all(origin.startswith("https://") for origin in self.origins)

    def session(self, token: str) -> str:
        """Return the cookie's value for a token. The token cannot be had from it."""
        return hmac.new(self._secret, token.encode("utf-8", "surrogateescape"), hashlib.sha256).hexdigest()

    def by_token(self, token: str) -> Visitor | None:
        """Return who holds this token, compared in constant time."""
        return self.by_session(self.session(token))

    def by_session(self, value: str) -> Visitor | None:
        """Return whose session this is."""
        found = None
        for token, visitor in self.tokens.items():
            if hmac.compare_digest(self.session(token).encode(), value.encode("utf-8", "replace")):
                found = visitor
        return found


class Refused(Exception):
    """A request that is not answered: its status and the one sentence why."""

    def __init__(self, status: int, why: str) -> None:
        super().__init__(why)
        self.status, self.why = status, why


class Guard:
    """The ASGI application around the pages."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app, self._door = app, door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            answer: ASGIApp = self._admit(scope) or self._app
        except Refused as refused:
            answer = PlainTextResponse(f"{refused.why}\n", refused.status)
        await answer(scope, receive, _with_headers(send))

    def _admit(self, scope: Scope) -> Response | None:
        """Return an answer of the guard's own, or None to let the request through. Raises Refused."""
        headers = Headers(scope=scope)
        _check_form(scope, headers)
        self._check_origin(scope, headers)
        if scope["path"].startswith("/static/"):
            return None
        if redirect := self._token_for_cookie(scope):
            return redirect
        visitor = self._visitor(headers)
        if visitor is None:
            raise Refused(
                403,
                "open the URL that `cai view` printed: it lets this browser in. If you came here from "
                "another site, open this address again by hand",
            )
        scope.setdefault("state", {})["visitor"] = visitor
        return None

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        hosts, origins = headers.getlist("host"), headers.getlist("origin")
        if len(hosts) != 1 or hosts[0] not in self._door.hosts:
            raise Refused(421, f"this address is not served here; open one of {', '.join(sorted(self._door.origins))}")
        if any(origin not in self._door.origins for origin in origins):
            raise Refused(403, "another origin may not ask here")
        site, mode = headers.get("sec-fetch-site", "none"), headers.get("sec-fetch-mode", "navigate")
        if site in ("cross-site", "same-site") and (mode != "navigate" or scope["method"] == "POST"):
            raise Refused(403, "another site may not load anything from here")
        if scope["method"] == "POST":
            _check_write(headers, origins)

    def _token_for_cookie(self, scope: Scope) -> Response | None:
        """Return the redirect that turns a URL's token into a cookie, so that it leaves the address bar."""
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == "token"]
        if not given:
            return None
        if scope["method"] != "GET" or len(given) > 1 or self._door.by_token(given[0]) is None:
            raise Refused(403, "this token opens nothing here; take the URL that `cai view` printed last")
        rest = urlencode([(name, value) for name, value in query if name != "token"])
        # Two slashes at the front would name another host.
        path = "/" + scope["path"].lstrip("/\\")
        answer = RedirectResponse(f"{path}?{rest}" if rest else path, status_code=303)
        answer.set_cookie(
            self._door.cookie,
            self._door.session(given[0]),
            httponly=True,
            samesite="strict",
            secure=self._door.is_encrypted,
            path="/",
        )
        return answer

    def _visitor(self, headers: Headers) -> Visitor | None:
        try:
            jar = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return None
        kept = jar.get(self._door.cookie)
        return self._door.by_session(kept.value) if kept else None


def _check_form(scope: Scope, headers: Headers) -> None:
    """Refuse what no browser of ours sends: other methods, upgrades, odd paths."""
    if scope["method"] not in ("GET", "HEAD", "POST"):
        raise Refused(405, "only GET, HEAD and POST are answered here")
    if "upgrade" in headers:
        raise Refused(400, "nothing here is spoken but HTTP")
    path = scope["path"]
    if ".." in path.split("/") or "\\" in path or any(ord(c) < 32 for c in path):
        raise Refused(400, "this path leads nowhere")


def _check_write(headers: Headers, origins: list[str]) -> None:
    if len(origins) != 1:
        raise Refused(403, "a write must name its origin")
    if headers.getlist(WRITE_HEADER) != ["1"]:
        raise Refused(403, f"a write must carry the header {WRITE_HEADER}: 1")
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refused(415, "a write must be application/json")
    length = headers.get("content-length", "")
    # isdecimal() is true of digits that int() reads and no server ever sends; the set is the plain ten.
    if not length or set(length) - set("0123456789"):
        raise Refused(411, "a write must say how long it is")
    if int(length) > MOST_BODY_BYTES:
        raise Refused(413, f"a write may hold {MOST_BODY_BYTES:,} bytes")


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending
