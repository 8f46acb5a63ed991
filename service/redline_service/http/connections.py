"""Connections that may not stay: uvicorn's HTTP protocol with deadlines for headers, idling and reading, and a limit.

uvicorn closes a kept connection that idles, and nothing else: one that never sends its headers, sends them a byte a
second, goes on sending a body that was refused, or does not read its answer stays for ever, and each holds a file
descriptor.
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
# Bytes of a body that are taken from the network before anybody asks for them: two reads.
_READ_BYTES = 32 * 1024
# Of one request; the parser itself has no bound.
_MAX_HEADER_BYTES = 32 * 1024
_MAX_HEADERS = 128
# File descriptors for everything but connections: the libraries', the model's files, connections just accepted.
_RESERVED_DESCRIPTORS = 128
# Requests that are parsed before the one in front of them is answered: those behind a body of unknown length. Others
# stay bytes until their turn comes; parsed, a small request takes a hundred times its size.
_MAX_PIPELINED = 4
_SWEEP_S = 0.5
_LAST_BODY_S = 5.0
_HEADERS_END = b"\r\n\r\n"
# How a request begins, and what its headers do not hold: what looks otherwise goes to the parser as it comes, which
# refuses it. Headers are kept until they are complete.
_METHOD = re.compile(rb"[A-Z]{1,20}(?: |$)")
_LONGEST_METHOD = 21
_BARE_LINE_END = re.compile(rb"(?<!\r)\n")
# Some clients offer HTTP/2 in every request (Java's does). The parser would then take the body for the new protocol's.
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r\n]*(?=\r\n)", re.IGNORECASE)
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True)
class ConnectionLimits:
    """Seconds, and how many connections there may be; see ``ServiceSettings``."""

    header_timeout_s: float = 10.0
    idle_timeout_s: float = 75.0
    write_timeout_s: float = 30.0
    max_connections: int = 4096

    def within_descriptors(self) -> int:
        """``max_connections``, or fewer where the process may not open as many files."""
        soft = -1 if resource is None else resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        if soft < 0:  # unlimited, or not known
            return self.max_connections
        return max(1, min(self.max_connections, soft - _RESERVED_DESCRIPTORS))


class Connections:
    """All connections of a server that wait for a request, in the order in which they began to wait."""

    def __init__(self, limits: ConnectionLimits) -> None:
        self.limits = limits
        self.limit = limits.within_descriptors()
        self.open: set[LimitedProtocol] = set()
        # those that never sent a request, and those between two requests; the longest wait first
        self._new: dict[LimitedProtocol, None] = {}
        self._kept: dict[LimitedProtocol, None] = {}

    def protocol(self) -> type[LimitedProtocol]:
        """The protocol class for ``uvicorn.Config(http=...)``: uvicorn makes one object a connection."""
        connections = self

        class Protocol(LimitedProtocol):
            registry = connections

        return Protocol

    def waits(self, connection: LimitedProtocol) -> None:
        """``connection`` begins to wait for a request."""
        (self._kept if connection.requests else self._new)[connection] = None

    def works(self, connection: LimitedProtocol) -> None:
        """``connection`` has a request now, or is gone."""
        self._new.pop(connection, None)
        self._kept.pop(connection, None)

    def make_room(self) -> bool:
        """Close the connection that can be spared most; False if there is none.

        First the one that has waited longest without a request, before all one that never sent any. Then the one whose
        body is coming in for the longest time, or whose answer is not read for the longest time: nothing is lost but
        the time of a caller who takes his own. Requests that are being answered stay.
        """
        for waiting in (self._new, self._kept):
            for connection in waiting:
                connection.drop()
                return True
        slow = [(since, id(one), one) for one in self.open if (since := one.held_up_since) is not None]
        if slow:
            min(slow)[2].drop()
        return bool(slow)

    async def sweep(self) -> None:
        """Close what is overdue, twice a second, until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP_S)
            now = time.monotonic()
            for connection in list(self.open):
                if connection.is_overdue(now, self.limits):
                    connection.drop()


class LimitedProtocol(HttpToolsProtocol):
    """One connection."""

    registry: Connections

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.requests = 0
        self._is_refused = False
        self._is_in_headers = self._is_in_body = False
        self._waiting_since = time.monotonic()
        self._headers_since: float | None = None
        self._body_since = 0.0
        self._body_left: int | None = None  # bytes of the body that is coming in, None if its length is not known
        self._ahead = b""  # what came behind a request that is not answered yet, and headers that are not complete
        self._looked_at = 0  # bytes of it in which no end of the headers was found
        self._unread_since: float | None = None
        self._unread = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio's hook."""
        registry = self.registry
        if len(registry.open) >= registry.limit and not registry.make_room():
            transport.write(_FULL)
            transport.close()
            self._is_refused = True
            return
        super().connection_made(transport)
        transport.max_size = _READ_BYTES  # type: ignore[attr-defined]
        registry.open.add(self)
        registry.waits(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio's hook."""
        self.registry.open.discard(self)
        self.registry.works(self)
        if not self._is_refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """asyncio's hook."""
        if not self._is_refused:
            self._ahead += data
            self._parse_ahead()

    def _parse_ahead(self) -> None:
        """Give the parser what belongs to one request, its headers as a whole; the rest waits until it is answered."""
        while self._ahead and not self.transport.is_closing():
            if self.is_busy and not self._is_in_body:
                self.flow.pause_reading()  # uvicorn goes on reading once the request is answered
                return
            if self._is_in_body:
                end = len(self._ahead) if self._body_left is None else self._body_left
            else:
                if not self._looked_at:
                    self._ahead = self._ahead.lstrip(b"\r\n")
                at = self._ahead.find(_HEADERS_END, max(0, self._looked_at - len(_HEADERS_END)))
                if at < 0 and self._headers_may_go_on():
                    return
                end = len(self._ahead) if at < 0 else at + len(_HEADERS_END)
                if end > _MAX_HEADER_BYTES:
                    self.send_400_response("The headers are too large.")
                    return
            self._looked_at = 0
            part, self._ahead = self._ahead[:end], self._ahead[end:]
            self._parse(part if self._is_in_body else _UPGRADE.sub(b"", part))
            if self._is_in_headers and not self.transport.is_closing():  # the parser gets headers whole or not at all
                self.send_400_response("The headers are not complete, or not HTTP/1.1.")

    def _headers_may_go_on(self) -> bool:
        """Whether what came may be the beginning of a request's headers, of which the rest is waited for."""
        if not self._ahead:
            return True
        if len(self._ahead) > _MAX_HEADER_BYTES or not _METHOD.match(self._ahead[:_LONGEST_METHOD]):
            return False
        if _BARE_LINE_END.search(self._ahead, self._looked_at):
            return False
        self._looked_at = len(self._ahead)
        if self._headers_since is None:
            self._headers_since = time.monotonic()
        return True

    def _parse(self, data: bytes) -> None:
        if self._headers_since is None and not self.is_busy and not self._is_in_body:
            self._headers_since = time.monotonic()
        if self._is_in_body and self._body_left is not None:
            self._body_left -= len(data)
        super().data_received(data)
        if self.is_busy and len(self.cycle.body) >= _READ_BYTES:
            self.flow.pause_reading()  # until the endpoint asks for more

    def on_message_begin(self) -> None:
        """The parser's hook: the first byte of a request. Raises ValueError, which ends the connection."""
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise ValueError("too many requests ahead of their answers")
        self._is_in_headers = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """The parser's hook, for trailers behind a body, too. Raises ValueError, which is answered 400."""
        if len(self.headers) >= _MAX_HEADERS:
            raise ValueError("too many headers")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """The parser's hook."""
        self._is_in_headers, self._is_in_body = False, True
        self._headers_since, self._body_since = None, time.monotonic()
        self.requests += 1
        length = next((value for name, value in self.headers if name == b"content-length"), b"")
        self._body_left = int(length) if length.isdigit() and len(length) < 19 else None
        super().on_headers_complete()  # raises for an address that is none
        self.registry.works(self)

    def on_message_complete(self) -> None:
        """The parser's hook: the last byte of a request."""
        self._is_in_body = False
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """uvicorn's hook."""
        self._waiting_since = time.monotonic()
        if not self.pipeline:
            self.registry.waits(self)
        super().on_response_complete()
        if self._ahead:
            self.loop.call_soon(self._parse_ahead)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's answer to what is no HTTP; behind an answer that was begun there is no place for another."""
        if self.pipeline or (self.is_busy and self.cycle.response_started):
            self.drop()
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def shutdown(self) -> None:
        """uvicorn's hook: the server ends once its connections have. A body that is still coming has a moment left."""
        super().shutdown()
        if self._is_in_body:
            self.loop.call_later(_LAST_BODY_S, lambda: self.drop() if self._is_in_body else None)

    @property
    def is_busy(self) -> bool:
        """Whether a request is being read or answered; its own deadlines count then."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def held_up_since(self) -> float | None:
        """Since when the other side keeps this connection busy by not sending or not reading; None if it does not."""
        if self._is_in_body:
            return self._body_since
        return self._unread_since if self.transport.get_write_buffer_size() > 0 else None

    def is_overdue(self, now: float, limits: ConnectionLimits) -> bool:
        """Whether the other side has been given long enough. ``now``: ``time.monotonic`` seconds."""
        if self._is_unread(now, limits.write_timeout_s):
            return True
        if self.is_busy:
            return False
        if self._is_in_body:  # the rest of a body that was answered without it
            return now - self._waiting_since > limits.header_timeout_s
        if self._headers_since is not None:
            return now - self._headers_since > limits.header_timeout_s
        limit_s = limits.idle_timeout_s if self.requests else limits.header_timeout_s
        return now - self._waiting_since > limit_s

    def _is_unread(self, now: float, write_timeout_s: float) -> bool:
        """Whether nothing of what was written has been read for too long."""
        unread = self.transport.get_write_buffer_size()
        if unread == 0 or unread < self._unread or self._unread_since is None:
            self._unread_since = now
        self._unread = unread
        return unread > 0 and now - self._unread_since > write_timeout_s

    def drop(self) -> None:
        """Close at once, whatever is still to be written."""
        self.registry.works(self)
        self.registry.open.discard(self)
        self.transport.abort()
