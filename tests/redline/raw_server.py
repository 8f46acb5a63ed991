"""A server of bare sockets, for answers that no HTTP library would send; and one call of either client to it."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable
from typing import Any, Self

from redline import NO_RETRY, AsyncRewardClient, RewardClient

Handler = Callable[[socket.socket], None]
LONGEST_S = 10.0  # that a connection is kept, whatever a test does


class RawServer:
    """Hands each connection to ``handler``, in a thread of its own, and closes it after. Use ``with``.

    ``connections``: how many were accepted. ``wait_s`` waits, or ends the handler if the test is over.
    """

    def __init__(self, handler: Handler, receive_buffer: int | None = None) -> None:
        self.connections = 0
        self._handler = handler
        self._is_over = threading.Event()
        self._listener = socket.socket()
        if receive_buffer is not None:
            self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(16)
        self._listener.settimeout(0.05)
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._threads = [threading.Thread(target=self._accept, daemon=True)]

    def __enter__(self) -> Self:
        self._threads[0].start()
        return self

    def __exit__(self, *raised: object) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join(LONGEST_S)
        self._listener.close()

    def wait_s(self, seconds: float) -> None:
        """Raises OSError once the test is over."""
        if self._is_over.wait(seconds):
            raise OSError("the test is over")

    def drip(self, connection: socket.socket, data: bytes, pause_s: float = 0.05) -> None:
        """One byte after the other, a hundred at most: five seconds, and less than any timeout between two of them."""
        for byte in data[:100]:
            connection.sendall(bytes([byte]))
            self.wait_s(pause_s)

    def _accept(self) -> None:
        while not self._is_over.is_set():
            try:
                connection, _ = self._listener.accept()
            except TimeoutError:
                continue
            self.connections += 1
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(LONGEST_S)
        with connection:
            try:
                self._handler(connection)
            except OSError:
                return  # the client has gone, as it should


def receive_request(connection: socket.socket) -> bytes:
    """One request, its body included."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += _received(connection)
    head, _, body = data.partition(b"\r\n\r\n")
    lengths = [int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
    while len(body) < sum(lengths):
        body += _received(connection)
    return head + b"\r\n\r\n" + body


def _received(connection: socket.socket) -> bytes:
    data = connection.recv(65536)
    if not data:
        raise OSError("the client closed the connection")
    return data


def http(body: bytes, *headers: str, status: str = "200 OK", has_length: bool = True) -> bytes:
    """A whole answer."""
    lines = [f"HTTP/1.1 {status}", *([f"Content-Length: {len(body)}"] if has_length else []), *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def call(is_async: bool, use: Callable[[Any], Any], **settings: Any) -> Any:
    """``use(client)`` with a client of either kind; what the asyncio client returns is awaited."""
    settings = {"retry": NO_RETRY, **settings}
    if not is_async:
        with RewardClient(**settings) as client:
            return use(client)

    async def main() -> Any:
        async with AsyncRewardClient(**settings) as client:
            answer: Awaitable[Any] = use(client)
            return await answer

    return asyncio.run(main())
