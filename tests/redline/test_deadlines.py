"""``timeout_s`` bounds a request, whatever the server does: real sockets, both clients."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

import httpcore
import httpx
import pytest

from redline import ConnectionFailedError, RewardClient
from redline.http.deadlines import DeadlineBackend, enforce_deadlines, request_deadline
from tests.redline.raw_server import RawServer, call, http, receive_request

TIMEOUT_S = 0.3
# Far beyond TIMEOUT_S on a busy machine, and far below the five seconds for which the servers here go on.
SLACK_S = 2.0
MODELS = http(b'{"models": []}', "Content-Type: application/json")
Script = Callable[[RawServer, socket.socket], None]


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def serving(script: Script, **settings: Any) -> RawServer:
    """A server that runs ``script`` on each connection."""
    server = RawServer(lambda connection: script(server, connection), **settings)
    return server


def in_time(is_async: bool, use: Callable[[Any], Any], **settings: Any) -> None:
    """``use`` must fail, for want of an answer, after the timeout and soon after it."""
    started = time.monotonic()
    with pytest.raises(ConnectionFailedError, match=r"no answer from .* within 0\.3 s"):
        call(is_async, use, timeout_s=TIMEOUT_S, **settings)
    assert TIMEOUT_S * 0.9 <= time.monotonic() - started <= TIMEOUT_S + SLACK_S


def drip_status_line(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    server.drip(connection, b"HTTP/1.1 200 " + b"O" * 100)


def drip_headers(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    server.drip(connection, b"A: b\r\n" * 20)


def drip_body(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
    server.drip(connection, b" " * 100)


def drip_chunks(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    server.drip(connection, b"1\r\n \r\n" * 20)


def drip_error_body(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(b"HTTP/1.1 503 Busy\r\nContent-Length: 1000\r\n\r\n")
    server.drip(connection, b" " * 100)


def say_continue(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    for _ in range(100):
        connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        server.wait_s(0.05)


def never_answer(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    server.wait_s(5.0)


def answer_once_then_drip(server: RawServer, connection: socket.socket) -> None:
    receive_request(connection)
    connection.sendall(MODELS)
    drip_headers(server, connection)


@pytest.mark.parametrize(
    "script",
    [drip_status_line, drip_headers, drip_body, drip_chunks, drip_error_body, say_continue, never_answer],
)
def test_a_slowly_sent_answer_ends_at_the_timeout(script: Script, is_async: bool) -> None:
    with serving(script) as server:
        in_time(is_async, lambda client: client.models(), url=server.url)


def test_each_request_on_a_kept_connection_has_its_own_deadline(is_async: bool) -> None:
    with serving(answer_once_then_drip) as server:
        if is_async:

            async def twice(client: Any) -> None:
                assert await client.models() == []
                await client.models()

            in_time(is_async, twice, url=server.url)
        else:

            def sequentially(client: Any) -> None:
                assert client.models() == []
                client.models()

            in_time(is_async, sequentially, url=server.url)
        assert server.connections == 1


def test_a_server_that_reads_slowly_is_cut_off_at_the_timeout(is_async: bool) -> None:
    def read_slowly(server: RawServer, connection: socket.socket) -> None:
        for _ in range(100):  # every send ends soon, for there is always some room again
            for _ in range(8):
                connection.recv(65536)
            server.wait_s(0.05)

    item = {"prompt": "Say it.", "response": "x" * 40_000_000}
    with serving(read_slowly, receive_buffer=65536) as server:
        in_time(is_async, lambda client: client.score([item]), url=server.url)


def test_a_slow_tls_handshake_ends_at_the_timeout(is_async: bool) -> None:
    def drip_handshake(server: RawServer, connection: socket.socket) -> None:
        server.drip(connection, b"\x16\x03\x03\x40\x00" + bytes(100))

    with serving(drip_handshake) as server:
        in_time(is_async, lambda client: client.models(), url=f"https://127.0.0.1:{server.port}")


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_timeout_holds_through_a_proxy(scheme: str, is_async: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(drip_headers) as server:
        monkeypatch.setenv(f"{scheme}_proxy", server.url)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        in_time(is_async, lambda client: client.models(), url=f"{scheme}://redline.test")
        assert server.connections == 1


def test_the_timeout_holds_for_a_passed_httpx_transport() -> None:
    with serving(drip_headers) as server:
        in_time(False, lambda client: client.models(), url=server.url, transport=httpx.HTTPTransport())


def test_the_timeout_of_other_transports_is_checked_between_chunks() -> None:
    def pieces() -> Iterable[bytes]:
        for _ in range(100):
            time.sleep(0.05)
            yield b" "

    class Slow(httpx.BaseTransport):
        def handle_request(self, request: httpx.Request) -> httpx.Response:
            return httpx.Response(200, content=pieces())

    in_time(False, lambda client: client.models(), url="http://redline.test", transport=Slow())


def test_wait_until_ready_ends_in_time_if_the_service_never_answers(is_async: bool) -> None:
    with serving(never_answer) as server:
        started = time.monotonic()
        with pytest.raises(ConnectionFailedError, match=r"not ready within 0\.5 s"):
            call(is_async, lambda client: client.wait_until_ready(timeout_s=0.5, poll_s=0.05), url=server.url)
        assert time.monotonic() - started <= 0.5 + SLACK_S


def test_the_deadline_is_sent_to_the_service(is_async: bool) -> None:
    heads: list[bytes] = []

    def note(server: RawServer, connection: socket.socket) -> None:
        heads.append(receive_request(connection))
        connection.sendall(MODELS)

    with serving(note) as server:
        call(is_async, lambda client: client.models(), url=server.url, timeout_s=7.5)
    assert b"\r\nx-deadline-s: 7.5\r\n" in heads[0].lower()


def test_an_answer_before_the_deadline_is_accepted(is_async: bool) -> None:
    body = json.dumps({"models": []}).encode()

    def in_pieces(server: RawServer, connection: socket.socket) -> None:
        receive_request(connection)
        server.drip(connection, http(body), pause_s=0.001)

    with serving(in_pieces) as server:
        assert call(is_async, lambda client: client.models(), url=server.url, timeout_s=30.0) == []


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan"), float("inf")])
def test_an_invalid_timeout_is_refused(timeout_s: float, is_async: bool) -> None:
    with pytest.raises(ValueError, match="timeout_s"):
        call(is_async, lambda client: client.models(), timeout_s=timeout_s)


# --- the wrapped network backend ----------------------------------------------------------------------------


class Unreachable(httpcore.MockBackend):
    """Lets every connection attempt take all of its time."""

    def __init__(self) -> None:
        super().__init__([])
        self.attempts: list[tuple[str, float]] = []

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Any = None,
    ) -> httpcore.NetworkStream:
        assert timeout is not None
        self.attempts.append((host, timeout))
        time.sleep(timeout)
        raise httpcore.ConnectTimeout


def test_the_addresses_of_a_name_share_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    address_info = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (f"192.0.2.{n}", 80)) for n in (1, 2, 3, 3)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *arguments, **named: address_info)
    backend = Unreachable()
    with request_deadline(0.3), pytest.raises(httpcore.ConnectTimeout):
        DeadlineBackend(backend).connect_tcp("redline.test", 80, timeout=60.0)
    assert [host for host, _ in backend.attempts] == ["192.0.2.1", "192.0.2.2", "192.0.2.3"]
    assert sum(timeout for _, timeout in backend.attempts) <= 0.3
    assert backend.attempts[0][1] == pytest.approx(0.1, abs=0.02)


def test_outside_of_a_request_httpx_s_own_timeouts_apply() -> None:
    class Noting(httpcore.MockBackend):
        def connect_tcp(self, host: str, port: int, timeout: float | None = None, *rest: Any) -> Any:
            assert timeout == 60.0
            return super().connect_tcp(host, port, timeout, *rest)

    DeadlineBackend(Noting([])).connect_tcp("127.0.0.1", 80, timeout=60.0)


def test_every_pool_of_a_client_is_wrapped_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    with RewardClient("https://redline.test") as client:
        enforce_deadlines(client._http)
        transports = [client._http._transport, *client._http._mounts.values()]
        backends = [
            transport._pool._network_backend for transport in transports if isinstance(transport, httpx.HTTPTransport)
        ]
        assert len(backends) == 2
        assert all(isinstance(backend, DeadlineBackend) for backend in backends)
        assert not any(isinstance(backend._backend, DeadlineBackend) for backend in backends)


def test_an_httpx_with_changed_internals_gives_a_warning_and_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        _transport = httpx.HTTPTransport()

    del Other._transport._pool
    with pytest.warns(RuntimeWarning, match="not a total deadline with httpx"):
        enforce_deadlines(Other())  # type: ignore[arg-type]
