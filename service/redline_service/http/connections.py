"""uvicorn's HTTP protocol with time limits for headers, idling and reading, and a limit on connections.

uvicorn closes idle kept connections only. Without these limits a connection would stay open forever if it never sends
its headers, sends them one byte per second, keeps sending a refused body, or does not read its response. Each of them
holds a file descriptor.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

logger = logging.getLogger("redline.service")
# Bytes of a body that are read from the network before the endpoint asks for them: two reads.
_READ_BYTES = 32 * 1024
# Limits for the headers of one request; the parser itself has none.
_MAX_HEADER_BYTES = 32 * 1024
_MAX_HEADERS = 128
# File descriptors for everything but connections: libraries, the model's files, connections that were just accepted.
_RESERVED_DESCRIPTORS = 128
# Requests that are parsed before the previous one is answered. This happens only after a body of unknown length; other
# requests stay bytes until their turn, because a small request takes a hundred times its size when it is parsed.
_MAX_PIPELINED = 4
_SWEEP_S = 0.5
_LAST_BODY_S = 5.0
_HEADERS_END = b"\r\n\r\n"
# Headers are kept until they are complete. Data that does not start like a request, or contains a line end that headers
# must not contain, is passed to the parser at once, which refuses it.
_METHOD = re.compile(rb"[A-Z]{1,20}(?: |$)")
_MAX_METHOD_BYTES = 21
_BARE_LINE_END = re.compile(rb"(?<!\r)\n")
# Some clients (Java's, for example) offer HTTP/2 in every request. The parser would then take the body for data of the
# new protocol, so the header is removed.
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)
_FULL_RESPONSE = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """Time limits in seconds, and the number of connections; see ``ServiceSettings``."""

    header_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    max_connections: int = 4096

    def within_descriptor_limit(self) -> int:
        """``max_connections``, or fewer if the process may not open so many files."""
        soft_limit = -1 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft_limit < 0:  # unlimited or unknown
            return self.max_connections
        return max(1, min(self.max_connections, soft_limit - _RESERVED_DESCRIPTORS))


class Connections:
    """All open connections of a server. Those that wait for a request are ordered by how long they have waited."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.limit = limits.within_descriptor_limit()
        self.open: set[LimitedProtocol] = set()
        # connections that never sent a request, and connections between two requests; the longest wait first
        self._new: dict[LimitedProtocol, None] = {}
        self._kept: dict[LimitedProtocol, None] = {}

    def protocol_class(self) -> type[LimitedProtocol]:
        """The class for ``uvicorn.Config(http=...)``; uvicorn creates one object per connection."""
        connections = self

        class Protocol(LimitedProtocol):
            registry = connections

        return Protocol

    def mark_waiting(self, connection: LimitedProtocol) -> None:
        """Record that ``connection`` starts to wait for a request."""
        (self._kept if connection.requests else self._new)[connection] = None

    def unmark_waiting(self, connection: LimitedProtocol) -> None:
        """Record that ``connection`` has received a request or is closed."""
        self._new.pop(connection, None)
        self._kept.pop(connection, None)

    def close_one(self) -> bool:
        """Close the connection whose loss costs least; False if there is none that may be closed.

        This is the one that has waited longest among those that never sent a request, then among those between two
        requests. If no connection waits, it is the one whose body has been arriving, or whose response has been unread,
        for the longest time. Connections whose requests are being answered are never closed.
        """
        for waiting in (self._new, self._kept):
            for connection in waiting:
                connection.drop()
                return True
        slow = [
            (since, id(connection), connection)
            for connection in self.open
            if (since := connection.blocked_since) is not None
        ]
        if slow:
            min(slow)[2].drop()
        return bool(slow)

    async def sweep(self) -> None:
        """Close connections that exceed a time limit, twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in list(self.open):
                connection.record_write_progress(now)
                if connection.is_overdue(now, self.limits):
                    connection.drop()


class LimitedProtocol(HttpToolsProtocol):
    """One connection. ``requests``: number of requests received so far."""

    registry: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests = 0
        self._is_refused = False
        self._is_in_headers = self._is_in_body = False
        self._waiting_since = time.monotonic()
        self._headers_since: float | None = None
        self._body_since = 0.0
        self._body_bytes_left: int | None = None  # of the body that is arriving, None if its length is unknown
        self._buffer = b""  # data that arrived before the current request was answered, and incomplete headers
        self._searched_bytes = 0  # of the buffer, in which no end of the headers was found
        self._unread_since: float | None = None
        self._unread_bytes = 0  # of responses, that the client has not read

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio's hook."""
        registry = self.registry
        if len(registry.open) >= registry.limit and not registry.close_one():
            transport.write(_FULL_RESPONSE)
            transport.close()
            self._is_refused = True
            return
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        registry.open.add(self)
        registry.mark_waiting(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's hook."""
        self.registry.open.discard(self)
        self.registry.unmark_waiting(self)
        if not self._is_refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's hook."""
        if not self._is_refused:
            self._buffer += data
            self._parse_buffer()

    def _parse_buffer(self) -> None:
        """Pass the data of one request to the parser, its headers in one piece; the rest waits until it is answered."""
        while self._buffer and not self.transport.is_closing():
            if self.is_busy and not self._is_in_body:
                self.flow.pause_reading()  # uvicorn goes on reading once the request is answered
                return
            if self._is_in_body:
                end = len(self._buffer) if self._body_bytes_left is None else self._body_bytes_left
            else:
                if not self._searched_bytes:
                    self._buffer = self._buffer.lstrip(b"\r\n")
                headers_end = self._buffer.find(_HEADERS_END, max(0, self._searched_bytes - len(_HEADERS_END)))
                if headers_end < 0 and self._wait_for_headers():
                    return
                end = len(self._buffer) if headers_end < 0 else headers_end + len(_HEADERS_END)
                if end > _MAX_HEADER_BYTES:
                    self.send_400_response("The headers are too large.")
                    return
            self._searched_bytes = 0
            part, self._buffer = self._buffer[:end], self._buffer[end:]
            self._parse(part if self._is_in_body else _UPGRADE.sub(b"", part))
            if self._is_in_headers and not self.transport.is_closing():  # the parser gets complete headers or none
                self.send_400_response("The headers are incomplete or not HTTP/1.1.")

    def _wait_for_headers(self) -> bool:
        """Whether the buffer may be the start of incomplete headers. If so, starts the time limit for the rest."""
        if not self._buffer:
            return True
        if len(self._buffer) > _MAX_HEADER_BYTES or not _METHOD.match(self._buffer[:_MAX_METHOD_BYTES]):
            return False
        if _BARE_LINE_END.search(self._buffer, self._searched_bytes):
            return False
        self._searched_bytes = len(self._buffer)
        if self._headers_since is None:
            self._headers_since = time.monotonic()
        return True

    def _parse(self, data: bytes) -> None:
        if self._headers_since is None and not self.is_busy and not self._is_in_body:
            self._headers_since = time.monotonic()
        if self._is_in_body and self._body_bytes_left is not None:
            self._body_bytes_left -= len(data)
        super().data_received(data)
        if self.is_busy and len(self.cycle.body) >= _READ_BYTES:
            self.flow.pause_reading()  # until the endpoint reads more

    def on_message_begin(self) -> None:
        """The parser's hook: first byte of a request. Raises ValueError, which closes the connection."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests were sent before the first was answered")
        self._is_in_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's hook, also for trailers after a body. Raises ValueError, which gets status 400."""
        if len(self.headers) >= _MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The parser's hook."""
        self._is_in_headers, self._is_in_body = False, True
        self._headers_since, self._body_since = None, time.monotonic()
        self.requests += 1
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        self._body_bytes_left = int(length) if length.isdigit() and len(length) < 19 else None
        super().on_headers_complete()  # raises if the URL is invalid
        self.registry.unmark_waiting(self)

    def on_message_complete(self) -> None:
        """The parser's hook: last byte of a request."""
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """uvicorn's hook."""
        self._waiting_since = time.monotonic()
        if not self.pipeline:
            self.registry.mark_waiting(self)
        super().on_response_complete()
        if self._buffer:
            self.loop.call_soon(self._parse_buffer)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's response to invalid HTTP. If another response has started, the connection is closed instead."""
        if self.pipeline or (self.is_busy and self.cycle.response_started):
            self.drop()
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def shutdown(self) -> None:
        """uvicorn's hook: the server waits for its connections to end. A body that is arriving gets a few seconds."""
        super().shutdown()
        if self._is_in_body:
            self.loop.call_later(_LAST_BODY_S, lambda: self.drop() if self._is_in_body else None)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being read or answered; it has its own time limits."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def blocked_since(self) -> float | None:
        """Time since which the connection waits for the client to send a body or read a response; None if neither."""
        if self._is_in_body:
            return self._body_since
        return self._unread_since if self.transport.get_write_buffer_size() > 0 else None

    def is_overdue(self, now: float, limits: ConnectionLimits) -> bool:
        """Whether the connection exceeds a time limit. ``now``: ``time.monotonic`` seconds.

        Call ``record_write_progress`` first.
        """
        unread_since = self._unread_since if self._unread_bytes > 0 else None
        if unread_since is not None and now - unread_since > limits.write_timeout_s:
            return True
        if self.is_busy:
            return False
        if self._is_in_body:  # the rest of a body whose request was answered before it arrived
            return now - self._waiting_since > limits.header_timeout_s
        if self._headers_since is not None:
            return now - self._headers_since > limits.header_timeout_s
        limit_s = limits.idle_timeout_s if self.requests else limits.header_timeout_s
        return now - self._waiting_since > limit_s

    def record_write_progress(self, now: float) -> None:
        """Note how much of the responses is unread, and since when nothing was read. ``now``: as in ``is_overdue``."""
        unread_bytes = self.transport.get_write_buffer_size()
        if unread_bytes == 0 or unread_bytes < self._unread_bytes or self._unread_since is None:
            self._unread_since = now
        self._unread_bytes = unread_bytes

    def drop(self) -> None:
        """Close at once, even if a response was not sent completely."""
        self.registry.unmark_waiting(self)
        self.registry.open.discard(self)
        self.transport.abort()
