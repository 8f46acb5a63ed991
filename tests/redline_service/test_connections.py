"""Connections that may not stay, on a real socket and without a model."""

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
    """Answers 20 MiB to /large, and a word to the rest."""
    assert scope["type"] == "http"
    body = b"x" * (20 * 2**20) if scope["path"] == "/large" else b"ok"
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(work: Any, **limits: Any) -> Any:
    """Run ``work(port, connections)`` in a thread beside a server with ``limits``."""

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


def test_answers_leave_at_once() -> None:
    listener = listen("127.0.0.1", 0)
    assert listener.proto == socket.IPPROTO_TCP  # asyncio sets TCP_NODELAY by it
    listener.close()


def test_an_answer_that_nobody_reads_is_given_up() -> None:
    def work(port: int, connections: Connections) -> float:
        with socket.create_connection(("127.0.0.1", port)) as reader:
            reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            started = time.monotonic()
            time.sleep(0.3)
            while connections.open and time.monotonic() - started < 15:
                time.sleep(0.05)
            return time.monotonic() - started

    assert 0.9 < run(work, write_timeout_s=1.0) < 10


def test_an_answer_that_is_read_slowly_is_not() -> None:
    def work(port: int, connections: Connections) -> int:
        received = 0
        with socket.create_connection(("127.0.0.1", port), timeout=20) as reader:
            reader.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n")
            while received < 20 * 2**20:
                piece = reader.recv(2**20)
                assert piece, f"closed after {received} bytes"
                received += len(piece)
                time.sleep(0.05)
        return received

    assert run(work, write_timeout_s=1.0, idle_timeout_s=0.5) >= 20 * 2**20


def test_at_the_limit_whoever_waits_longest_makes_room_and_who_works_stays() -> None:
    def work(port: int, connections: Connections) -> list[bool]:
        kept = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2)]
        for connection in kept:
            assert b"200" in get(connection)
        fresh = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(3)]
        time.sleep(0.2)
        assert len(connections.open) == 4
        # the first that never asked for anything is gone, those that did are not
        return [still_open(connection) for connection in (*kept, *fresh)]

    assert run(work, max_connections=4, header_timeout_s=60, idle_timeout_s=60) == [True, True, False, True, True]


def still_open(connection: socket.socket) -> bool:
    connection.settimeout(0.2)
    try:
        return connection.recv(1) != b""
    except TimeoutError:
        return True
    except ConnectionError:
        return False


@pytest.mark.parametrize("soft", [300, -1])
def test_the_limit_is_within_the_descriptors(monkeypatch: pytest.MonkeyPatch, soft: int) -> None:
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


def test_at_the_limit_an_answer_that_nobody_reads_makes_room() -> None:
    def work(port: int, connections: Connections) -> list[bool]:
        held = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(2)]
        for connection in held:
            connection.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n" * 2)  # the second is under way, not idle
            time.sleep(1.2)  # the sweep looks twice a second whether anything was read
        with socket.create_connection(("127.0.0.1", port), timeout=5) as another:
            assert b"200" in get(another)
        return [one in {two.transport.get_extra_info("peername") for two in connections.open} for one in names(held)]

    assert run(work, max_connections=2, write_timeout_s=60) == [False, True]


def names(connections: list[socket.socket]) -> list[tuple[str, int]]:
    return [connection.getsockname() for connection in connections]
