"""HTTP/1.1 on an asyncio transport: keep-alive, no logging, one request at a time per connection.

Written by hand because the server's own cost decides what a benchmark of its clients can show. It reads what HTTP
clients send to vLLM (Content-Length and chunked bodies, `Expect: 100-continue`) and no more.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from http import HTTPStatus
from typing import Literal, NamedTuple

MAX_BODY_BYTES = 256 * 2**20
_INBOX_BYTES = 256 * 2**10
_MAX_HEAD_BYTES = 64 * 2**10
_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_NO_LINGER = struct.pack("ii", 1, 0)

Ending = Literal["reply", "truncate", "reset", "hang"]


class Request(NamedTuple):
    """One request as it came in."""

    method: bytes
    path: bytes
    """Without the query."""
    query: bytes
    head: bytes
    """The header lines in lower case, without the request line."""
    body: bytes


class Reply(NamedTuple):
    """One reply, and how it goes out."""

    status: int = 200
    body: bytes = b""
    content_type: bytes = b"application/json"
    headers: bytes = b""
    """Further header lines, each ending in CRLF."""
    delay_s: float = 0.0
    ending: Ending = "reply"


class BadRequest(Exception):
    """The bytes on the connection are no HTTP request that we read."""


class Listener(NamedTuple):
    """What the connections of one server share."""

    answer: Callable[[Request], Reply]
    connections: set[Connection]
    """Those that are open."""
    inbox: memoryview
    """Where bytes arrive. One is enough: they are taken out before the loop turns to the next connection."""


def listener(answer: Callable[[Request], Reply]) -> Listener:
    """Return what a server's connections share."""
    return Listener(answer, set(), memoryview(bytearray(_INBOX_BYTES)))


class Connection(asyncio.BufferedProtocol):
    """Reads requests from one client, hands each to `answer`, and writes the reply."""

    def __init__(self, shared: Listener) -> None:
        self._answer, self._connections, self._inbox = shared
        self._buffer = bytearray()
        self._wanted = 0
        self._busy = False
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Join the server's open connections."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Leave them."""
        self._connections.discard(self)

    def abort(self) -> None:
        """Close without a word."""
        self._transport.abort()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Return where the next bytes go."""
        return self._inbox

    def buffer_updated(self, nbytes: int) -> None:
        """Collect bytes, and answer as soon as a request is whole."""
        self._buffer += self._inbox[:nbytes]
        # Bodies of megabytes come in many pieces: nothing is parsed again before all of them are here.
        if not self._busy and len(self._buffer) >= self._wanted:
            self._serve()

    def _serve(self) -> None:
        while not self._busy and not self._transport.is_closing():
            try:
                request = self._next_request()
            except BadRequest as error:
                self._write(Reply(400, str(error).encode(), b"text/plain"), keep=False)
                return
            if request is None:
                return
            self._begin(request, self._answer(request))

    def _begin(self, request: Request, reply: Reply) -> None:
        keep = b"connection: close" not in request.head
        if reply.delay_s > 0:
            self._busy = True
            asyncio.get_running_loop().call_later(reply.delay_s, self._finish, reply, keep)
        else:
            self._write(reply, keep)

    def _finish(self, reply: Reply, keep: bool) -> None:
        self._busy = False
        if not self._transport.is_closing():
            self._write(reply, keep)
            self._serve()

    def _write(self, reply: Reply, keep: bool) -> None:
        if reply.ending == "hang":
            self._busy = True
            return
        if reply.ending == "reset":
            # A zero linger time makes the kernel send RST in place of an orderly end.
            self._transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
            self._transport.abort()
            return
        whole = reply.ending == "reply"
        head = b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b%b\r\n" % (
            reply.status,
            _REASONS.get(reply.status, b"Unknown"),
            reply.content_type,
            len(reply.body),
            reply.headers,
            b"" if keep else b"Connection: close\r\n",
        )
        self._transport.write(head + (reply.body if whole else reply.body[: len(reply.body) // 2]))
        if not whole or not keep:
            self._transport.close()

    def _next_request(self) -> Request | None:
        """Return the next whole request and drop it from the buffer; None while bytes are missing."""
        buffer = self._buffer
        end = buffer.find(b"\r\n\r\n")
        if end < 0:
            if len(buffer) > _MAX_HEAD_BYTES:
                raise BadRequest("the request's head is too long")
            return None
        line, _, head = bytes(buffer[:end]).partition(b"\r\n")
        head = head.lower()
        words = line.split(b" ")
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            raise BadRequest("not an HTTP/1.1 request line")
        if b"expect: 100-continue" in head and len(buffer) == end + 4:
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if b"\r\ntransfer-encoding: chunked" in b"\r\n" + head:
            body, stop = self._chunks(end + 4)
        else:
            body, stop = self._plain(end + 4, head)
        if body is None:
            return None
        del buffer[:stop]
        self._wanted = 0
        path, _, query = words[1].partition(b"?")
        if words[2] == b"HTTP/1.0":
            head += b"\r\nconnection: close"
        return Request(words[0], path, query, head, body)

    def _plain(self, start: int, head: bytes) -> tuple[bytes | None, int]:
        """Return a body of known length and where it ends; None while it is not all here."""
        at = (b"\r\n" + head).find(b"\r\ncontent-length:")
        if at < 0:
            return b"", start
        length = head[at + 15 :].partition(b"\r\n")[0].strip()
        if not length.isdigit() or int(length) > MAX_BODY_BYTES:
            raise BadRequest("the content length is no number below 256 MiB")
        stop = start + int(length)
        if len(self._buffer) < stop:
            self._wanted = stop
            return None, start
        with memoryview(self._buffer) as buffer:
            return bytes(buffer[start:stop]), stop

    def _chunks(self, at: int) -> tuple[bytes | None, int]:
        """Return a chunked body and where it ends; None while it is not all here."""
        parts: list[bytes] = []
        while (line_end := self._buffer.find(b"\r\n", at)) >= 0:
            size = self._buffer[at:line_end].partition(b";")[0].strip()
            try:
                length = int(size, 16)
            except ValueError:
                raise BadRequest("a chunk's size is no hexadecimal number") from None
            if not 0 <= length <= MAX_BODY_BYTES:
                raise BadRequest("a chunk is larger than 256 MiB")
            start, at = line_end + 2, line_end + 2 + length + 2
            if len(self._buffer) < at:
                break
            if length == 0:
                return b"".join(parts), at
            parts.append(bytes(self._buffer[start : start + length]))
        return None, at
