"""Time limits of connections and their number, on real sockets and without a model."""

from __future__ import annotations

import asyncio
import socket
import time
from typing import Any

import pytest
import uvicorn

from redline_service.http.connections import ConnectionLimits, Connections
from redline_service.http.server import listen


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Responds with 20 MiB to /large and with two bytes to other paths."""
    assert scope["type"] == "http"
    body = b"x" * (20 * 2**20) if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(work: Any, **limits: Any) -> Any:
    """Run ``work(port, connections)`` in a thread while a server with ``limits`` runs."""

    async def serve() -> Any:
        connections = Connections(ConnectionLimits(**limits))
        config = uvicorn.Config(
            app, http=connections.protocol_class(), lifespan="off", log_config=None, access_log=False
        )
        server = uvicorn.Server(config)
        with listen("127.0.0.1", 0) as listener:
            serving = asyncio.create_task(server.serve([listener]))
            sweeping = asyncio.create_task(connections.sweep())
            while not server.started:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            try:
                return await asyncio.to_thread(work, listener.getsockname()[1], connections)
            finally:
                server.should_exit = True
                await serving
                sweeping.cancel()

    return asyncio.run(serve())


def get(connection: socket.socket, path: str = "/") -> bytes:
    connection.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    return connection.recv(4096)


def test_the_listening_socket_names_its_protocol_so_that_tcp_nodelay_is_set() -> None:
    listener = listen("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY by it
    listener.close()


def test_a_connection_that_does_not_read_its_response_is_closed() -> None:
    def work(port: int, connections: Connections) -> float:
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            time.sleep(0.3)
            while connections.open and time.monotonic() - started < 15:
                time.sleep(0.05)
            return time.monotonic() - started

    assert 0.9 < run(work, write_timeout_s=1.0) < 10


def test_a_connection_that_reads_its_response_slowly_stays_open() -> None:
    def work(port: int, connections: Connections) -> int:
        received = 0
        with socket.create_connection(("127.0.0.1", port), timeout=20) as reader:
            reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            while received < 20 * 2**20:
                data = reader.recv(2**20)
                assert data, f"closed after {received} bytes"
                received += len(data)
                time.sleep(0.05)
        return received

    assert run(work, write_timeout_s=1.0, idle_timeout_s=0.5) >= 20 * 2**20


def test_at_the_limit_the_connection_that_waited_longest_without_a_request_is_closed() -> None:
    def work(port: int, connections: Connections) -> list[bool]:
        kept = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2)]
        for connection in kept:
            assert b"200" in get(connection)
        new = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
        time.sleep(0.2)
        assert len(connections.open) == 4
        # the first connection that never sent a request is closed; those that did stay open
        return [is_open(connection) for connection in (*kept, *new)]

    assert run(work, max_connections=4, header_timeout_s=60, idle_timeout_s=60) == [True, True, False, True, True]


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("soft", [300, -1])
def test_the_limit_is_at_most_the_number_of_file_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
    monkeypatch.setattr("redline_service.http.connections.resource.getrlimit", lambda which: (soft, soft))
    assert Connections(ConnectionLimits(max_connections=1000)).limit == (172 if soft > 0 else 1000)


def test_pipelined_requests_are_all_answered() -> None:
    def work(port: int, connections: Connections) -> int:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
            received = b""
            while received.count(b"200 OK") < 50:
                received += connection.recv(65536)
            return received.count(b"200 OK")

    assert run(work) == 50


def test_at_the_limit_the_connection_whose_response_is_unread_longest_is_closed() -> None:
    def work(port: int, connections: Connections) -> list[bool]:
        unread = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2)]
        for connection in unread:
            connection.sendall(
                b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 2
            )  # two requests, so that the connection is not idle
            time.sleep(1.2)  # the server checks twice a second whether the response was read
        with socket.create_connection(("127.0.0.1", port), timeout=5) as another:
            assert b"200" in get(another)
        open_addresses = {connection.transport.get_extra_info("peername") for connection in connections.open}
        return [connection.getsockname() in open_addresses for connection in unread]

    assert run(work, max_connections=2, write_timeout_s=60) == [False, True]
