"""What one caller can take from the others of a service: connections, slots, memory, the right request."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from tests.attacks.server import BODIES, PROMPT, RESPONSE, Attacked, exchange, post, serving

pytestmark = pytest.mark.loop
SCORE = post("/v1/score", json.dumps(BODIES["/v1/score"]).encode())


def test_bodies_that_never_end_take_neither_slots_nor_connections(folder: Path) -> None:
    with serving(folder, max_connections=16, max_queued_requests=4, body_timeout_s=60) as service:
        held = []
        for _ in range(40):
            held.append(service.connect())
            held[-1].sendall(post("/v1/score", b"{", length=1000))
        for _ in range(3):
            answer = service.send(SCORE)
            assert answer.status == 200
            assert answer.seconds < 5
        for connection in held:
            connection.close()


def test_requests_in_front_of_their_answers_stay_bytes(service: Attacked) -> None:
    service.forget_peak()
    before = service.resident_mib()
    with service.watched() as live_s:
        connections = [service.connect() for _ in range(8)]
        for connection in connections:
            connection.setblocking(False)
            try:
                connection.send(SCORE + b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 50_000)
            except BlockingIOError:
                continue
        time.sleep(1)
        for connection in connections:
            connection.close()
    assert max(live_s) < 1.0
    assert service.resident_mib(peak=True) - before < 64


def test_a_request_that_offers_another_protocol_keeps_its_body(service: Attacked) -> None:
    offer = ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA")
    with service.connect() as connection:
        for _ in range(2):
            raw = post("/v1/score", json.dumps(BODIES["/v1/score"]).encode(), *offer)
            assert exchange(connection, raw, 10).status == 200


@pytest.mark.parametrize("lines", [("Connection: Upgrade", "Upgrade: h2c"), ("Upgrade: h2c", "Connection: upgrade")])
def test_an_offer_that_comes_in_pieces_does_not_make_the_body_another_request(
    service: Attacked, lines: tuple[str, str]
) -> None:
    hidden = post("/v1/score", json.dumps({"model": "hidden", "items": []}).encode())
    body = json.dumps({"items": [{"prompt": PROMPT, "response": hidden.decode()}]}).encode()
    for content, statuses in ((body, {200}), (hidden, {422})):
        raw = post("/v1/score", content, *lines)
        headers = raw.index(b"\r\n\r\n") + 4
        for cut in [*range(1, headers, 7), headers - 3, headers - 2, headers - 1, headers, headers + 5]:
            with service.connect() as connection:
                connection.sendall(raw[:cut])
                time.sleep(0.005)
                connection.sendall(raw[cut:] + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                received = b""
                while piece := connection.recv(65536):
                    received += piece
            assert {int(received.split(b" ")[1])} == statuses, cut
            assert received.count(b"HTTP/1.1 ") == 2, (cut, received)
            assert b"hidden" not in received.replace(hidden, b"")


@pytest.mark.parametrize(
    "raw", [b"\r\n\r\nx", b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]
)
def test_what_is_no_http_is_answered_400(service: Attacked, raw: bytes) -> None:
    assert service.send(raw).status == 400


def test_a_request_behind_another_gets_its_own_answer(service: Attacked) -> None:
    first = post("/v1/score", json.dumps({"items": [{"id": "one", "prompt": PROMPT, "response": RESPONSE}]}).encode())
    second = post("/v1/score", json.dumps({"items": [{"id": "two", "prompt": PROMPT, "response": "b"}]}).encode())
    with service.connect() as connection:
        connection.sendall(first + second + b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        received = b""
        while piece := connection.recv(65536):
            received += piece
    assert received.count(b"HTTP/1.1 200 OK") == 3
    assert -1 < received.find(b'"one"') < received.find(b'"two"') < received.find(b'"status"')
