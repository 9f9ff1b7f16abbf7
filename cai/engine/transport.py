"""One server as the client sees it: how many requests it bears, and what to do when it fails.

* Concurrency finds its own level: it grows while answers come and halves on 429, 503 and timeouts.
* Who goes on with what the server has just read goes before who begins, so that a beginning is read again before it
  falls out of the server's cache.
* What may pass is tried again with jittered, growing pauses, and Retry-After is honoured; what will never pass
  (400, 401, 403, 404, 413, 422, a spent quota) is not.
* A server that cannot be reached is waited for, up to a deadline; a server of our own is started again. Where replicas
  are up, what it was asked goes to them at once, and it is asked again when it is back.
* A server that holds requests and makes no progress is taken for hung, even where `/health` is green.
"""

from __future__ import annotations

import asyncio
import random
import re
import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import orjson

from cai.config import EngineSection
from cai.errors import EngineError, RejectedError, UserError

_TRANSIENT = frozenset({408, 429, 500, 502, 503, 504})
_CREDENTIALS = frozenset({401, 403})
_CONNECT_S = 10.0
_BACKOFF_S = 0.25
_BACKOFF_MAX_S = 30.0
_RETRY_AFTER_MAX_S = 120.0
_PROGRESS = re.compile(rb"^vllm:(?:generation|prompt)_tokens_total(?:\{[^}]*\})? ([0-9.e+]+)", re.MULTILINE)


class Level:
    """How many requests may be in flight: additive increase, multiplicative decrease (Chiu and Jain 1989).

    Until the first push back it doubles with every round of answers, as TCP's slow start does.
    """

    def __init__(self, most: int, start: int = 64) -> None:
        self.most = most
        self.limit = float(min(start, most))
        self.in_flight = 0
        self._pushed_back = False
        self._last_decrease = 0.0
        self._following: deque[asyncio.Future[None]] = deque()
        self._beginning: deque[asyncio.Future[None]] = deque()

    async def acquire(self, *, follows: bool = False) -> None:
        """Wait for a place, first come, first served; those that follow go before those that begin."""
        if self.in_flight < int(self.limit) and not self._following and not self._beginning:
            self.in_flight += 1
            return
        future = asyncio.get_running_loop().create_future()
        (self._following if follows else self._beginning).append(future)
        try:
            await future
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Give a place back and wake whoever fits."""
        self.in_flight -= 1
        self._wake()

    def grow(self) -> None:
        """Note an answer."""
        step = 1.0 if not self._pushed_back else 1.0 / self.limit
        self.limit = min(self.limit + step, float(self.most))
        self._wake()

    def shrink(self) -> None:
        """Note a push back; answers of one overload count once a second."""
        now = time.monotonic()
        self._pushed_back = True
        if now - self._last_decrease > 1.0:
            self.limit = max(1.0, self.limit / 2)
            self._last_decrease = now

    def _wake(self) -> None:
        while (waiting := self._following or self._beginning) and self.in_flight < int(self.limit):
            future = waiting.popleft()
            if not future.done():
                self.in_flight += 1
                future.set_result(None)


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
        """Whether it could be reached when it was last tried."""
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
        await self.level.acquire(follows=follows)
        try:
            return await self._until_answered(path, orjson.dumps(payload))
        finally:
            self.level.release()

    async def get(self, path: str) -> Any | None:
        """Return the JSON of one GET, or None where it does not answer 200 with JSON."""
        try:
            timeout = aiohttp.ClientTimeout(total=self._settings.request_timeout_s, sock_connect=_CONNECT_S)
            async with self._open_session.get(self.url + path, timeout=timeout, allow_redirects=False) as response:
                content = await response.read()
                if self._secret:
                    content = content.replace(self._secret, b"[key]")
                return orjson.loads(content) if response.status == 200 else None
        except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError):
            return None

    @property
    def _open_session(self) -> aiohttp.ClientSession:
        assert self._session is not None, "open() comes first"
        return self._session

    async def _until_answered(self, path: str, body: bytes) -> tuple[Any, int, float]:
        started, attempts, trouble = time.monotonic(), 0, ""
        while attempts <= self._settings.retries:
            generation = self._generation
            try:
                answer = await self._attempt(path, body)
                self.level.grow()
                self.n_answered += 1
                return answer, attempts + 1, time.monotonic() - started
            except _Unreachable as error:
                await self._wait_until_up(generation, str(error))
            except _TryAgain as error:
                attempts, trouble = attempts + 1, str(error)
                self.level.shrink()
                if error.broken:
                    await self._check_alive(generation)
                await asyncio.sleep(error.retry_after_s or _pause(attempts))
        raise RejectedError(f"{self.url}{path}: gave up after {attempts} attempts, last: {trouble}")

    async def _attempt(self, path: str, body: bytes) -> Any:
        sent = asyncio.timeout(self._settings.request_timeout_s)  # the watchdog lets it expire earlier, at 0
        try:
            async with sent:
                self._sent.add(sent)
                status, headers, content = await self._exchange(path, body)
        except aiohttp.ClientConnectorError as error:
            raise _Unreachable(str(error)) from error
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            trouble = f"{type(error).__name__} {error}"
            if sent.expired():
                trouble = "no progress" if sent.when() == 0 else f"no answer in {self._settings.request_timeout_s:g} s"
            raise _TryAgain(trouble, broken=True) from error
        finally:
            self._sent.discard(sent)
        return _judge_answer(self.url + path, status, headers, content)

    async def _exchange(self, path: str, body: bytes) -> tuple[int, Any, bytes]:
        async with self._open_session.post(self.url + path, data=body, allow_redirects=False) as response:
            content = await response.read()
            if self._secret and self._secret in content:  # some servers quote what they were sent
                content = content.replace(self._secret, b"[key]")
            return response.status, response.headers, content

    async def _check_alive(self, generation: int) -> None:
        """Revive a server of ours that broke a connection because it died."""
        if self._revive and await self.get("/v1/models") is None:
            await self._wait_until_up(generation, "connection broken")

    async def _wait_until_up(self, generation: int, trouble: str) -> None:
        async with self._reviving:
            if generation != self._generation:
                return  # somebody else waited for it meanwhile
            deadline = time.monotonic() + self._settings.outage_timeout_s
            while True:
                if self.elsewhere():
                    self._leave()
                    raise Elsewhere(f"{self.url}: {trouble}")
                if self._revive:
                    await self._revive()
                if await self.get("/v1/models") is not None:
                    self._generation += 1
                    self.is_up = True
                    return
                if time.monotonic() > deadline:
                    raise EngineError(
                        f"{self.url}: no answer for {self._settings.outage_timeout_s:.0f} s ({trouble}); start the "
                        "server, then run the same command again: everything answered so far is kept"
                    )
                await asyncio.sleep(0.5)

    def _leave(self) -> None:
        """Be passed over from now on, until it can be reached again."""
        if self.is_up:
            self.is_up = False
            self._looking = asyncio.create_task(self._until_back())

    async def _until_back(self) -> None:
        while await self.get("/v1/models") is None:
            await asyncio.sleep(0.5)
        self.is_up = True

    async def _watch(self) -> None:
        """Cancel what is in flight when nothing has moved for `stall_timeout_s`: it is then tried again."""
        seen, since = (0, 0.0), time.monotonic()
        while True:
            await asyncio.sleep(self._settings.stall_timeout_s / 8)
            now = (self.n_answered, await self._tokens_made() if self._stale(since) else seen[1])
            if now != seen or not self._sent:
                seen, since = now, time.monotonic()
            elif time.monotonic() - since > self._settings.stall_timeout_s:
                if self._revive:
                    await self._revive(hung=True)
                for sent in self._sent:
                    sent.reschedule(0)
                since = time.monotonic()

    def _stale(self, since: float) -> bool:
        return time.monotonic() - since > self._settings.stall_timeout_s / 2

    async def _tokens_made(self) -> float:
        try:
            timeout = aiohttp.ClientTimeout(total=5)
            async with self._open_session.get(
                self.url + "/metrics", timeout=timeout, allow_redirects=False
            ) as response:
                return sum(float(n) for n in _PROGRESS.findall(await response.read()))
        except (aiohttp.ClientError, TimeoutError):
            return 0.0


class Elsewhere(Exception):
    """This server is away, and a replica is up."""


class _Unreachable(Exception):
    """Nothing listens there: the request was never sent."""


class _TryAgain(Exception):
    """The request was sent and may pass another time."""

    def __init__(self, message: str, *, retry_after_s: float | None = None, broken: bool = False) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.broken = broken


def _judge_answer(where: str, status: int, headers: Any, content: bytes) -> Any:
    if status == 200:
        try:
            return orjson.loads(content)
        except orjson.JSONDecodeError:
            raise _TryAgain(f"200 with {len(content)} bytes that are not JSON") from None
    said = _message(content)
    if status in _CREDENTIALS:
        raise EngineError(f"{where}: {status} {said}; set the key's environment variable (models.….api_key_env)")
    if status == 429 and "quota" in said.lower():
        raise EngineError(f"{where}: {said}; the quota is spent, and waiting will not help")
    if status in _TRANSIENT:
        raise _TryAgain(f"{status} {said}", retry_after_s=_retry_after(headers))
    raise RejectedError(f"{where}: {status} {said}")


def _retry_after(headers: Any) -> float | None:
    """Return the seconds to wait: a number, or until the date that is named; None where neither stands there."""
    said = headers.get("Retry-After", "")
    try:
        is_number = said.replace(".", "", 1).isdecimal()
        seconds = float(said) if is_number else (parsedate_to_datetime(said) - datetime.now(UTC)).total_seconds()
    except (ValueError, TypeError, OverflowError):  # no date, or one without its zone
        return None
    return min(max(seconds, 0.0), _RETRY_AFTER_MAX_S)


def _pause(attempt: int) -> float:
    return min(_BACKOFF_S * 2 ** (attempt - 1), _BACKOFF_MAX_S) * random.uniform(0.5, 1.5)


def _message(content: bytes) -> str:
    """Return what an error body says, in one line of at most 300 characters."""
    try:
        body = orjson.loads(content)
        said = body.get("error", body) if isinstance(body, dict) else body
        text = str(said.get("message", said)) if isinstance(said, dict) else str(said)
    except orjson.JSONDecodeError:
        text = content.decode(errors="replace")
    return " ".join(text.split())[:300]


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
