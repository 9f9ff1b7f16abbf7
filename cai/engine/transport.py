"""One server as the client sees it: how requests get through to it, and what to do when it fails.

* Concurrency finds its own level (`cai.engine.level`): it grows while answers come and halves on 429, 503, timeouts and
  broken connections.
* Who goes on with what the server has just read goes before who begins, so that a beginning is read again before it
  falls out of the server's cache.
* What may pass is tried again with jittered, growing pauses; what will never pass (400, 401, 403, 404, 413, 422, a
  spent quota) is not. A request that is pushed back (429, 503) gives its place up meanwhile and waits for its turn as
  long as the server answers others; where Retry-After names a time, nothing is sent before it.
* A server that cannot be reached is waited for, up to a deadline; a server of our own is started again. Where replicas
  are up, what it was asked goes to them at once, and it is asked again when it is back.
* A server that holds requests, answers none and counts no more tokens is taken for hung, even where `/health` is green.
  One that counts no tokens at all is judged by how long each request may take.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from cai.config import EngineSection
from cai.engine.level import Level
from cai.engine.troubles import Elsewhere, TryAgain, Unreachable, read_answer
from cai.errors import EngineError, GaveUpError, UserError

_CONNECT_S = 10.0
_PROBE_S = 10.0
"""How long a server may take to tell how it is, before that counts as no answer."""
_LOOK_S = 0.5
_BACKOFF_S = 0.25
_BACKOFF_MAX_S = 30.0
_PROGRESS = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)


class Endpoint:
    """One server: its address, its level and its troubles."""

    def __init__(
        self,
        url: str,
        settings: EngineSection,
        *,
        api_key: str | None = None,
        revive: Callable[..., Awaitable[None]] | None = None,
    ) -> None:
        self.url = _checked(url, api_key)
        self.level = Level(settings.concurrency)
        self.n_answered = 0
        self.is_up = True
        """Whether it could be reached and made progress when it was last tried."""
        self.elsewhere: Callable[[], bool] = lambda: False
        """Tells whether a replica is up that can be asked instead."""
        self._settings = settings
        self._headers = {"Content-Type": "application/json"}
        self._secret = api_key.encode() if api_key else b""
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._revive = revive
        self._reviving = asyncio.Lock()
        self._generation = 0
        self._heard_at = self._answered_at = time.monotonic()
        self._n_answered_when_left = -1
        self._tokens: float | None = None
        self._sent: set[asyncio.Timeout] = set()
        self._session: aiohttp.ClientSession | None = None
        self._watchdog: asyncio.Task[None] | None = None
        self._looking: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the connection pool and start the watchdog."""
        # How long a request may take is watched by one clock of our own, not by two.
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S)
        connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=300)
        # Answers may be large and many: no cookies, no redirects (a key must not follow one to another host).
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, headers=self._headers, cookie_jar=aiohttp.DummyCookieJar()
        )
        self._watchdog = asyncio.create_task(self._watch())

    async def close(self) -> None:
        """Cancel what runs beside and close the pool."""
        beside = [task for task in (self._watchdog, self._looking) if task]
        for task in beside:
            task.cancel()
        await asyncio.gather(*beside, return_exceptions=True)
        if self._session:
            await self._session.close()

    async def post(self, path: str, payload: dict[str, Any], *, follows: bool = False) -> tuple[Any, int, float]:
        """Return (JSON answer, attempts, seconds); `follows` tells that the prompt goes on from one it has read.

        Raises RejectedError for this request, EngineError for all, Elsewhere where a replica should be asked instead.
        """
        number = await self.level.acquire(follows=follows)
        try:
            asked = _Asked(path, payload, orjson.dumps(payload), number, time.monotonic(), self.n_answered)
            return await self._until_answered(asked)
        finally:
            self.level.release()

    async def get(self, path: str) -> Any | None:
        """Return the JSON of one GET, or None where it does not answer 200 with JSON."""
        try:
            status, content = await self._get(path, self._settings.request_timeout_s)
            return orjson.loads(content) if status == 200 else None
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return None

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "open() comes first"
        return self._session

    async def _get(self, path: str, timeout_s: float) -> tuple[int, bytes]:
        timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=_CONNECT_S)
        async with self._open_session.get(self.url + path, timeout=timeout, allow_redirects=False) as response:
            return response.status, await self._read(response)

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        content = await response.read()
        if response.status < 500:  # what is above may come from a gateway that stands before it
            self._heard_at = time.monotonic()
        if self._secret and self._secret in content:  # some servers quote what they were sent
            content = content.replace(self._secret, b"[key]")
        return content

    # -- one request, until it is answered ---------------------------------------------------------------------------

    async def _until_answered(self, asked: _Asked) -> tuple[Any, int, float]:
        while True:
            if not self.is_up and self.elsewhere():
                raise Elsewhere(self.url)
            generation = self._generation
            try:
                answer = await self._attempt(asked.path, asked.body)
            except Unreachable as error:
                if not await self._was_away(generation, str(error)):
                    await self._step_back(asked, TryAgain(f"it takes no connection ({error})", overload=True))
            except TryAgain as trouble:
                if trouble.stalled:
                    self._leave_for_replicas(asked, str(trouble))
                if trouble.broken:
                    await self._was_away(generation, str(trouble))
                await self._step_back(asked, trouble)
            else:
                self.level.grow()
                self.n_answered += 1
                self._answered_at = time.monotonic()
                return answer, asked.n_failed + 1, time.monotonic() - asked.started

    async def _attempt(self, path: str, body: bytes) -> Any:
        n_answered = self.n_answered
        sent = asyncio.timeout(self._settings.request_timeout_s)  # the watchdog lets it expire earlier, at 0
        try:
            async with sent:
                self._sent.add(sent)
                status, headers, content = await self._exchange(path, body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise Unreachable(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            trouble, stalled = f"{type(error).__name__} {error}", False
            if sent.expired():
                no_progress = sent.when() == 0
                trouble = "no progress" if no_progress else f"no answer in {self._settings.request_timeout_s:g} s"
                stalled = no_progress or n_answered == self.n_answered
            raise TryAgain(trouble, broken=True, stalled=stalled) from error
        finally:
            self._sent.discard(sent)
        return read_answer(self.url + path, status, headers, content)

    async def _exchange(self, path: str, body: bytes) -> tuple[int, Any, bytes]:
        async with self._open_session.post(self.url + path, data=body, allow_redirects=False) as response:
            return response.status, response.headers, await self._read(response)

    async def _step_back(self, asked: _Asked, trouble: TryAgain) -> None:
        """Wait until a request may be sent again. Raises at once where it will not be."""
        if trouble.overload:
            self.level.shrink(asked.number)
        if trouble.pushed_back:
            asked.n_push_backs += 1
            self._check_serves_others(asked, str(trouble))
        else:
            asked.n_tries += 1
            if asked.n_tries > self._settings.retries:
                raise asked.given_up(self.url, str(trouble))
        pause_s = trouble.retry_after_s or _pause(asked.n_failed)
        if trouble.pushed_back and trouble.retry_after_s:
            self.level.hold(trouble.retry_after_s)
            pause_s = 0.0
        asked.number = await self.level.again(asked.number, pause_s)

    def _check_serves_others(self, asked: _Asked, trouble: str) -> None:
        """Raise where a server that pushes back has answered nobody for `outage_timeout_s`.

        As long as it answers others, a push back only means to wait for one's turn, however long the line is. What is
        pushed back when no others are left is too much for it by itself; where none were ever answered, it is away.
        """
        if time.monotonic() - max(asked.started, self._answered_at) <= self._settings.outage_timeout_s:
            return
        if self.n_answered > asked.n_answered_before:
            raise asked.given_up(self.url, trouble)
        self._leave_for_replicas(asked, trouble)
        raise EngineError(
            f"{self.url}: pushed all requests back for {self._settings.outage_timeout_s:.0f} s ({trouble}); run the "
            "same command again when it takes some: everything answered so far is kept"
        )

    # -- whether it is there -----------------------------------------------------------------------------------------

    async def until_there(self, trouble: str) -> None:
        """Wait until the server is there, as a request does. Raises what a request raises."""
        await self._was_away(self._generation, trouble)

    async def _was_away(self, generation: int, trouble: str) -> bool:
        """Return False if the server is there; else wait until it is, reviving it where we can, and return True."""
        since = time.monotonic()
        async with self._reviving:
            if generation != self._generation:
                return True  # somebody else waited for it meanwhile
            if self._heard_at > since or await self._answers():
                return False
            deadline = time.monotonic() + self._settings.outage_timeout_s
            while True:
                if self.elsewhere():
                    self._leave(self._answers)
                    raise Elsewhere(f"{self.url}: {trouble}")
                if self._revive:
                    await self._revive()
                if await self._answers():
                    self._generation += 1
                    self.is_up = True
                    return True
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{self.url}: no answer for {self._settings.outage_timeout_s:.0f} s ({trouble}); start the "
                        "server, then run the same command again: everything answered so far is kept"
                    )
                await asyncio.sleep(_LOOK_S)

    async def _answers(self) -> bool:
        """Return whether it answers at all, be it that it is asked too much."""
        try:
            status, _ = await self._get("/v1/models", _PROBE_S)
        except (aiohttp.ClientError, OSError):
            return False
        return status < 500

    async def _serves(self, asked: _Asked) -> bool:
        """Return whether it answers a request, cut to one token: a server that hangs may still list its models."""
        cut = {"max_tokens": 1} if "max_tokens" in asked.payload else {}
        try:
            await self._attempt(asked.path, orjson.dumps(asked.payload | cut))
        except (Unreachable, TryAgain, EngineError):
            return False
        return True

    def _leave_for_replicas(self, asked: _Asked, trouble: str) -> None:
        """Raise Elsewhere, and be passed over until `asked` would be answered, where a replica is up.

        Only where something was answered here since the last time: replicas that all hang would otherwise send a
        request back and forth for ever.
        """
        if self.elsewhere() and (not self.is_up or self.n_answered != self._n_answered_when_left):
            self._n_answered_when_left = self.n_answered
            self._leave(lambda: self._serves(asked))
            raise Elsewhere(f"{self.url}: {trouble}")

    def _leave(self, is_back: Callable[[], Awaitable[bool]]) -> None:
        """Be passed over from now on, until it is back."""
        if self.is_up:
            self.is_up = False
            self._looking = asyncio.create_task(self._until_back(is_back))

    async def _until_back(self, is_back: Callable[[], Awaitable[bool]]) -> None:
        while not await is_back():
            await asyncio.sleep(_LOOK_S)
        self.is_up = True

    # -- whether it makes progress -----------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Cancel what is in flight when nothing has moved for `stall_timeout_s`: it is then tried again."""
        stall_s, n_answered, since = self._settings.stall_timeout_s, self.n_answered, time.monotonic()
        while True:
            await asyncio.sleep(stall_s / 8)
            if n_answered != self.n_answered or not self._sent:
                n_answered, since = self.n_answered, time.monotonic()
            elif time.monotonic() - since > stall_s / 2:
                if not await self._stands_still():
                    since = time.monotonic()
                elif time.monotonic() - since > stall_s and n_answered == self.n_answered:
                    await self._end_what_hangs()
                    since = time.monotonic()

    async def _end_what_hangs(self) -> None:
        hanging = set(self._sent)
        if self._revive:
            async with self._reviving:  # nobody else looks whether it is there before it is
                await self._revive(hung=True)
                self._generation += 1
        for sent in hanging & self._sent:
            if not sent.expired():
                sent.reschedule(0)

    async def _stands_still(self) -> bool:
        """Return whether it has read and written no tokens since this was last asked; False where nothing tells."""
        before = self._tokens
        try:
            self._tokens = await self._tokens_made()
        except (aiohttp.ClientError, OSError):
            return True  # it does not even answer that
        return self._tokens is not None and self._tokens == before

    async def _tokens_made(self) -> float | None:
        """Return the tokens it has read and written, None where it does not count them. Raises what aiohttp raises."""
        _, content = await self._get("/metrics", _PROBE_S)
        counts = _PROGRESS.findall(content)
        return sum(float(n) for n in counts) if counts else None


@dataclass
class _Asked:
    """One request, and what has come of it so far."""

    path: str
    payload: dict[str, Any]
    body: bytes
    number: int
    """Which sending it is, as the level counts them."""
    started: float
    n_answered_before: int
    """How many other requests its server had answered when it was first sent."""
    n_tries: int = 0
    """Failures that count against `engine.retries`."""
    n_push_backs: int = 0

    @property
    def n_failed(self) -> int:
        """How often it was sent without an answer."""
        return self.n_tries + self.n_push_backs

    def given_up(self, url: str, trouble: str) -> GaveUpError:
        """Return the error that ends it."""
        return GaveUpError(f"{url}{self.path}: gave up after {self.n_failed} attempts, last: {trouble}")


def _pause(attempt: int) -> float:
    return min(_BACKOFF_S * 2 ** (attempt - 1), _BACKOFF_MAX_S) * random.uniform(0.5, 1.5)


def _checked(url: str, api_key: str | None) -> str:
    parts = urlsplit(url)
    if "@" in parts.netloc or "@" in url.partition("?")[0]:
        raise UserError("base_url holds credentials; name an environment variable in models.….api_key_env instead")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise UserError(f"base_url '{url}': expected http://host:port or https://host; check models.….base_url")
    loopback = parts.hostname in ("localhost", "::1") or parts.hostname.startswith("127.")
    if api_key and parts.scheme == "http" and not loopback:
        raise UserError(f"base_url '{url}': an API key would travel unencrypted; use https")
    return url.rstrip("/").removesuffix("/v1")
