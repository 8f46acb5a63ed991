"""One caller cannot take connections, slots or memory from others; each request gets its own response."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.attacks.server import BODIES, PROMPT, RESPONSE, ServiceProcess, exchange, post, serving

pytestmark = pytest.mark.loop
SCORE_REQUEST = post("/v1/score", json.dumps(BODIES["/v1/score"]).encode())


def test_bodies_that_never_end_hold_neither_slots_nor_connections(folder: Path) -> None:
    with serving(folder, max_connections=16, max_queued_requests=4, body_timeout_s=60) as service:
        connections = []
        for _ in range(40):
            connections.append(service.connect())
            connections[-1].sendall(post("/v1/score", b"{", length=1000))
        for _ in range(3):
            response = service.send(SCORE_REQUEST)
            assert response.status == 200
            assert response.seconds < 5
        for connection in connections:
            connection.close()


def test_pipelined_requests_are_kept_as_bytes(service: ServiceProcess) -> None:
    service.reset_peak()
    before = service.resident_mib()
    with service.probed() as live_s:
        connections = [service.connect() for _ in range(8)]
        for connection in connections:
            connection.setblocking(False)
            try:
                connection.send(SCORE_REQUEST + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 50_000)
            except BlockingIOError:
                continue
        time.sleep(1)
        for connection in connections:
            connection.close()
    assert max(live_s) < 1.0
    assert service.resident_mib(peak=True) - before < 64


def test_a_protocol_upgrade_offer_is_ignored_and_the_body_kept(service: ServiceProcess) -> None:
    upgrade_headers = (
        "Connection: Upgrade, HTTP2-Settings",
        "Upgrade: h2c",
        "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
    )
    with service.connect() as connection:
        for _ in range(2):
            raw = post("/v1/score", json.dumps(BODIES["/v1/score"]).encode(), *upgrade_headers)
            assert exchange(connection, raw, 10).status == 200


@pytest.mark.parametrize("lines", [("Connection: Upgrade", "Upgrade: h2c"), ("Upgrade: h2c", "Connection: upgrade")])
def test_an_upgrade_offer_in_pieces_does_not_turn_the_body_into_a_request(
    service: ServiceProcess, lines: tuple[str, str]
) -> None:
    hidden_request = post("/v1/score", json.dumps({"model": "hidden", "items": []}).encode())
    body = json.dumps({"items": [{"prompt": PROMPT, "response": hidden_request.decode()}]}).encode()
    for content, statuses in ((body, {200}), (hidden_request, {422})):
        raw = post("/v1/score", content, *lines)
        headers_end = raw.index(b"\r\n\r\n") + 4
        for cut in [*range(1, headers_end, 7), *range(headers_end - 3, headers_end + 1), headers_end + 5]:
            with service.connect() as connection:
                connection.sendall(raw[:cut])
                time.sleep(0.005)
                connection.sendall(raw[cut:] + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                received = b""
                while data := connection.recv(65536):
                    received += data
            assert {int(received.split(b" ")[1])} == statuses, cut
            assert received.count(b"HTTP/1.1 ") == 2, (cut, received)
            assert b"hidden" not in received.replace(hidden_request, b"")


@pytest.mark.parametrize(
    "raw", [b"\r\n\r\nx", b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_invalid_http_gets_status_400(service: ServiceProcess, raw: bytes) -> None:
    assert service.send(raw).status == 400


def test_pipelined_requests_get_their_responses_in_order(service: ServiceProcess) -> None:
    first = post("/v1/score", json.dumps({"items": [{"id": "one", "prompt": PROMPT, "response": RESPONSE}]}).encode())
    second = post("/v1/score", json.dumps({"items": [{"id": "two", "prompt": PROMPT, "response": "b"}]}).encode())
    with service.connect() as connection:
        connection.sendall(first + second + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while data := connection.recv(65536):
            received += data
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert -1 < received.find(b'"one"') < received.find(b'"two"') < received.find(b'"status"')
