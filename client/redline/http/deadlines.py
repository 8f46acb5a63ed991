"""A total deadline for each request of the blocking client.

httpx has timeouts for a single connect, read or write and none for a whole request: a server that sends one byte a
second of its headers or of its body resets the read timeout with every byte and holds the caller as long as it likes.
The asyncio client has ``asyncio.timeout`` for this; blocking code has nothing that could interrupt it. So the network
backend under httpx's connection pools is wrapped here: whatever a request does on the network may take what is left
of the request's deadline and no more. The pools have no public argument for it, hence the private attributes in
``enforce_deadlines``; tests with dripping servers fail if httpx renames them.

Not covered: the look-up of a host name, which ``getaddrinfo`` bounds by itself, and a server that drips bytes inside
TLS inside the TLS of an HTTPS proxy.
"""

from __future__ import annotations

import socket
import ssl
import time
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

# time.monotonic() at which the request that this thread is making must be over
_deadline: ContextVar[float | None] = ContextVar("redline_request_deadline", default=None)
# A larger write may take several sends, each with a timeout of its own.
_WRITE_BYTES = 16 * 1024


class RequestDeadline:
    """When a request must be over."""

    def __init__(self, timeout_s: float) -> None:
        self.at = time.monotonic() + timeout_s

    def check(self) -> None:
        """For transports that are not httpx's own. Raises httpx.ReadTimeout once it has passed."""
        if time.monotonic() > self.at:
            raise httpx.ReadTimeout("the deadline of the request has passed")


@contextmanager
def request_deadline(timeout_s: float) -> Iterator[RequestDeadline]:
    """What this thread does on the network inside the ``with`` block ends ``timeout_s`` seconds from now."""
    deadline = RequestDeadline(timeout_s)
    token = _deadline.set(deadline.at)
    try:
        yield deadline
    finally:
        _deadline.reset(token)


def enforce_deadlines(client: httpx.Client) -> None:
    """Have httpx's own transports of ``client``, those to proxies too, keep to ``request_deadline``."""
    try:
        transports = [client._transport, *client._mounts.values()]
        pools: list[Any] = [one._pool for one in transports if isinstance(one, httpx.HTTPTransport)]
        for pool in pools:
            if not isinstance(pool._network_backend, DeadlineBackend):
                pool._network_backend = DeadlineBackend(pool._network_backend)
    except AttributeError as error:
        message = f"timeout_s is no total deadline with httpx {httpx.__version__}, whose insides have changed: {error}"
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _time_left(timeout_s: float | None, expired: type[Exception]) -> float | None:
    """``timeout_s``, or what is left of the deadline if that is less. Raises ``expired`` if nothing is left."""
    at = _deadline.get()
    if at is None:
        return timeout_s
    left_s = at - time.monotonic()
    if left_s <= 0:
        raise expired("the deadline of the request has passed")
    return left_s if timeout_s is None else min(timeout_s, left_s)


class DeadlineBackend(httpcore.NetworkBackend):
    """A network backend whose every operation ends at the deadline of the request."""

    def __init__(self, backend: httpcore.NetworkBackend) -> None:
        self._backend = backend

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to one address of ``host`` after the other; they share the time."""
        failure: Exception | None = None
        addresses = _addresses(host, port)
        for position, address in enumerate(addresses):
            left_s = _time_left(timeout, httpcore.ConnectTimeout)
            share_s = None if left_s is None else left_s / (len(addresses) - position)
            try:
                stream = self._backend.connect_tcp(address, port, share_s, local_address, socket_options)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return DeadlineStream(stream)
        raise failure or httpcore.ConnectError(f"{host} has no address")

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore.NetworkStream:
        """See ``connect_tcp``."""
        left_s = _time_left(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._backend.connect_unix_socket(path, left_s, socket_options))

    def sleep(self, seconds: float) -> None:
        """Between the tries of a transport that has ``retries``."""
        left_s = _time_left(seconds, httpcore.ConnectTimeout)
        self._backend.sleep(seconds if left_s is None else left_s)


def _addresses(host: str, port: int) -> list[str]:
    """The distinct addresses of ``host``, in the order in which they are to be tried."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    numbers = [f"{to[0]}%{to[3]}" if len(to) > 3 and to[3] else str(to[0]) for *_, to in found]
    return list(dict.fromkeys(numbers))


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose every read and write ends at the deadline of the request."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """What has arrived, at most ``max_bytes``."""
        return self._stream.read(max_bytes, _time_left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``."""
        for start in range(0, len(buffer), _WRITE_BYTES):
            piece = buffer[start : start + _WRITE_BYTES]
            self._stream.write(piece, _time_left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """Close the connection, without waiting for the other side."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The connection with TLS on top."""
        left_s = _time_left(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, left_s))

    def get_extra_info(self, info: str) -> Any:
        """As the connection itself."""
        return self._stream.get_extra_info(info)
