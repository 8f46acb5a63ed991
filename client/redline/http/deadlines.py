"""A total deadline for each request of the blocking client.

httpx has timeouts for a single connect, read or write but none for a whole request: a server that sends one byte per
second resets the read timeout with every byte and can block the caller without limit. The asyncio client uses
``asyncio.timeout``; blocking code cannot be interrupted. So this module wraps the network backend of httpx's connection
pools: each network operation gets the remaining time of the request as its timeout. The pools have no public argument
for it, hence the private attributes in ``enforce_deadlines``; tests with slow servers fail if httpx renames them.

Not covered: the lookup of a host name, which ``getaddrinfo`` limits by itself, and a server that sends slowly inside
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

# time.monotonic() at which the current request of this thread must end
_deadline: ContextVar[float | None] = ContextVar("redline_request_deadline", default=None)
# A larger write may take several sends, each with a timeout of its own.
_WRITE_BYTES = 16 * 1024


class RequestDeadline:
    """The deadline of one request."""

    def __init__(self, timeout_s: float) -> None:
        self.at = time.monotonic() + timeout_s

    def check(self) -> None:
        """Raise httpx.ReadTimeout if the deadline has passed. For transports other than httpx's own."""
        if time.monotonic() > self.at:
            raise httpx.ReadTimeout("the deadline of the request has passed")


@contextmanager
def request_deadline(timeout_s: float) -> Iterator[RequestDeadline]:
    """Network operations of this thread inside the ``with`` block end ``timeout_s`` seconds from now."""
    deadline = RequestDeadline(timeout_s)
    token = _deadline.set(deadline.at)
    try:
        yield deadline
    finally:
        _deadline.reset(token)


def enforce_deadlines(client: httpx.Client) -> None:
    """Make httpx's own transports of ``client``, including proxies, respect ``request_deadline``."""
    try:
        transports = [client._transport, *client._mounts.values()]
        pools: list[Any] = [transport._pool for transport in transports if isinstance(transport, httpx.HTTPTransport)]
        for pool in pools:
            if not isinstance(pool._network_backend, DeadlineBackend):
                pool._network_backend = DeadlineBackend(pool._network_backend)
    except AttributeError as error:
        message = (
            f"timeout_s is not a total deadline with httpx {httpx.__version__}, whose internals have changed: {error}"
        )
        warnings.warn(message, RuntimeWarning, stacklevel=3)


def _remaining_time(timeout_s: float | None, expired: type[Exception]) -> float | None:
    """``timeout_s``, or the remaining time if that is less. Raises ``expired`` if no time is left."""
    at = _deadline.get()
    if at is None:
        return timeout_s
    remaining_s = at - time.monotonic()
    if remaining_s <= 0:
        raise expired("the deadline of the request has passed")
    return remaining_s if timeout_s is None else min(timeout_s, remaining_s)


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
        """Try the addresses of ``host`` one after another; they share the time."""
        failure: Exception | None = None
        addresses = _addresses(host, port)
        for position, address in enumerate(addresses):
            remaining_s = _remaining_time(timeout, httpcore.ConnectTimeout)
            share_s = None if remaining_s is None else remaining_s / (len(addresses) - position)
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
        remaining_s = _remaining_time(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._backend.connect_unix_socket(path, remaining_s, socket_options))

    def sleep(self, seconds: float) -> None:
        """Used between the attempts of a transport with ``retries``."""
        remaining_s = _remaining_time(seconds, httpcore.ConnectTimeout)
        self._backend.sleep(seconds if remaining_s is None else remaining_s)


def _addresses(host: str, port: int) -> list[str]:
    """The distinct addresses of ``host``, in the order of attempts."""
    try:
        addresses = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(str(error)) from error
    numbers = [f"{to[0]}%{to[3]}" if len(to) > 3 and to[3] else str(to[0]) for *_, to in addresses]
    return list(dict.fromkeys(numbers))


class DeadlineStream(httpcore.NetworkStream):
    """A connection whose every read and write ends at the deadline of the request."""

    def __init__(self, stream: httpcore.NetworkStream) -> None:
        self._stream = stream

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        """Read at most ``max_bytes``."""
        return self._stream.read(max_bytes, _remaining_time(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        """Send all of ``buffer``."""
        for start in range(0, len(buffer), _WRITE_BYTES):
            piece = buffer[start : start + _WRITE_BYTES]
            self._stream.write(piece, _remaining_time(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        """Close the connection, without waiting for the other side."""
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        """The connection with TLS on top."""
        remaining_s = _remaining_time(timeout, httpcore.ConnectTimeout)
        return DeadlineStream(self._stream.start_tls(ssl_context, server_hostname, remaining_s))

    def get_extra_info(self, info: str) -> Any:
        """See ``httpcore.NetworkStream``."""
        return self._stream.get_extra_info(info)
