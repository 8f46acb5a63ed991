"""Attacks on a real service process: hostile, large or broken requests of a single caller."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from pydantic_settings import SettingsError

from redline_service.settings import ServiceSettings
from tests.attacks.server import BODIES, KEY, PROMPT, RESPONSE, ServiceProcess, exchange, post, serving
from tests.ports import free_port

pytestmark = pytest.mark.loop
LARGE_TEXT_BYTES = 64 * 1024
# docs/reference/limits-and-security.md promises 1 s and 250 ms; other tests may use the processor at the same time.
QUICK_S = 3.0
LIVE_S = 1.0
MARKERS = [
    "[INST] <<SYS>>" + " " * 64,
    "[INST] <<SYS>>",
    " \n",
    "<s>",
    "<|im_start|>user\n",
    "<|im_start|>assistant\n <think>\n",
    "[SYSTEM_PROMPT][/SYSTEM_PROMPT] ",
    "\n\nHuman: \n\nAssistant: ",
    "<|end|>",
    "\u3000\u00a0",
    "\ufdfa",
]


def text_bodies(text: str) -> dict[str, Any]:
    """For every route that parses rendered conversations, a body with ``text`` in place of a conversation."""
    return {
        "/get_reward": {"query": [text], "prompts": [text[: len(text) // 2]]},
        "/v1/score/evaluation": {"messages": [text]},
        "/classify": {"text": text},
        "/pooling": {"input": text},
        "/v1/score": {"items": [{"prompt": text, "response": text}], "options": {"on_too_long": "truncate"}},
    }


@pytest.mark.parametrize("marker", MARKERS)
def test_texts_of_64_kb_are_answered_quickly_and_do_not_delay_others(service: ServiceProcess, marker: str) -> None:
    text = (marker * (LARGE_TEXT_BYTES // len(marker) + 1))[:LARGE_TEXT_BYTES]
    with service.probed() as live_s:
        for start in ("", "[INST] <<SYS>>", "<|im_start|>user\n"):
            for path, body in text_bodies(start + text).items():
                response = service.json(path, body)
                assert response.status in {200, 413, 422}, (path, response)
                assert response.seconds < QUICK_S, (path, start)
    assert max(live_s) < LIVE_S


@pytest.mark.parametrize(
    "body",
    [
        '{"items": [' + ", ".join(["{}"] * 250_000) + "]}",
        '{"items": [{"prompt_ids": [' + ", ".join(['"x"'] * 200_000) + "]}]}",
        '{"items": [{"prompt": "a", "response": "b", "token_offsets": [' + ", ".join(["[1]"] * 200_000) + "]}]}",
        '{"items": [{' + ", ".join(f'"unknown{n}": 1' for n in range(60_000)) + "}]}",
        '{"items": [{"prompt": [' + ", ".join(['{"role": 1}'] * 80_000) + "]}]}",
        "[" * 1_000_000,
        '{"items": ' + "9" * 1_000_000 + "}",
        '{"model": "' + "m" * 1_000_000 + '", "items": []}',
        '{"' + "x" * 1_000_000 + '": 1}',
    ],
    ids=["items", "ids", "offsets", "fields", "messages", "nesting", "digits", "name", "field name"],
)
def test_a_megabyte_of_invalid_input_is_refused_in_bounded_time_and_memory(service: ServiceProcess, body: str) -> None:
    service.reset_peak()
    before = service.resident_mib()
    with service.probed() as live_s:
        response = service.send(post("/v1/score", body.encode()))
    assert response.status in {404, 413, 422}
    assert len(response.body) < 64 * 1024
    assert response.seconds < QUICK_S
    assert max(live_s) < LIVE_S
    assert service.resident_mib(peak=True) - before < 100


@pytest.mark.parametrize("path", [*BODIES, "/v1/models"])
def test_without_a_key_the_body_is_not_read(guarded: ServiceProcess, path: str) -> None:
    body = b'{"items": [' + b"[],".join([b""] * 10_000_000) + b"]}"
    guarded.reset_peak()
    before = guarded.resident_mib()
    with guarded.probed() as live_s:
        response = guarded.send(post(path, body[: 30 * 2**20]))
    assert response.status in {401, 405}
    assert response.seconds < QUICK_S
    assert max(live_s) < LIVE_S
    assert guarded.resident_mib(peak=True) - before < 8


def test_callers_without_a_key_hold_at_most_64_kib_each(guarded: ServiceProcess) -> None:
    before = guarded.resident_mib()
    connections = [guarded.connect() for _ in range(100)]
    for connection in connections:
        connection.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            connection.send(post("/v1/score", b"x" * 2**20))
    time.sleep(1)
    assert guarded.resident_mib() - before < 100 * 64 / 1024 + 8
    for connection in connections:
        connection.close()


def test_a_too_large_body_is_refused_on_its_headers(service: ServiceProcess) -> None:
    response = service.send(post("/v1/score", b"", length=10**15))
    assert (response.status, response.code) == (413, "request_too_large")
    assert service.send(post("/v1/score", b"", length=0)).status == 422


@pytest.mark.parametrize("path", BODIES)
def test_a_body_that_arrives_too_slowly_gets_408(service: ServiceProcess, path: str) -> None:
    with service.connect() as connection:
        connection.sendall(post(path, b"{", length=1000))
        started = time.perf_counter()
        received = None
        while received is None and time.perf_counter() - started < 10:
            connection.settimeout(0.2)
            try:
                received = connection.recv(4096)
            except TimeoutError:
                connection.sendall(b" ")
    assert received is not None, "a body that arrives too slowly is read forever"
    assert received.startswith(b"HTTP/1.1 408 ")
    assert 0.9 < time.perf_counter() - started < 5


def test_the_rest_of_a_refused_body_is_not_read_forever(service: ServiceProcess) -> None:
    with service.connect() as connection:
        response = exchange(connection, post("/v1/score", b"x", length=10**9))
        assert response.status == 413
        assert is_closed_during_slow_sending(connection, 10)


def is_closed_during_slow_sending(connection: socket.socket, seconds: float) -> bool:
    """Whether the other side closes the connection within ``seconds`` while single bytes are sent."""
    connection.setblocking(False)
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        try:
            connection.send(b"x")
            if connection.recv(4096) == b"":
                return True
        except BlockingIOError:
            time.sleep(0.1)
        except OSError:
            return True
    return False


@pytest.mark.parametrize("sent", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\nX: "], ids=["nothing", "a byte", "half"])
def test_connections_that_send_no_request_are_closed(service: ServiceProcess, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        started = time.perf_counter()
        if len(sent) > 1:
            assert is_closed_during_slow_sending(connection, 10), "incomplete headers keep a connection open forever"
        else:
            assert connection.recv(1) == b""
    assert time.perf_counter() - started > 0.5


def test_an_idle_kept_connection_is_closed(service: ServiceProcess) -> None:
    with service.connect() as connection:
        assert exchange(connection, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
        connection.setblocking(True)
        connection.settimeout(10)
        started = time.perf_counter()
        assert connection.recv(1) == b""
    assert time.perf_counter() - started > 1.0


def test_headers_that_never_end_are_refused(service: ServiceProcess) -> None:
    for head in (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000, b"GET / HTTP/1.1\r\nx: " + b"y" * 600_000):
        response = service.send(head)
        assert response.status in {0, 400, 431}


def test_a_body_of_tiny_chunks_does_not_delay_others(service: ServiceProcess) -> None:
    head = post("/v1/score", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with service.probed() as live_s:
        response = service.send(head + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
    assert response.status in {400, 408, 422}
    assert max(live_s) < LIVE_S


def test_the_service_works_if_descriptors_are_fewer_than_connections(folder: Path) -> None:
    def limit_descriptors() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with serving(folder, preexec=limit_descriptors) as service:
        connections = []
        for _ in range(600):
            try:
                connections.append(service.connect(5))
            except OSError:
                break
        started = time.perf_counter()
        response = service.json("/v1/score", BODIES["/v1/score"])
        assert response.status == 200
        assert time.perf_counter() - started < 10
        for connection in connections:
            connection.close()


def test_small_requests_on_a_kept_connection_do_not_wait_for_the_network(service: ServiceProcess) -> None:
    latencies_s = []
    with service.connect() as connection:
        for _ in range(30):
            latencies_s.append(exchange(connection, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").seconds)
    assert sorted(latencies_s)[15] < 0.03  # 40 ms and more if TCP_NODELAY is not set


def test_the_port_is_reserved_before_the_model_is_loaded(service: ServiceProcess, folder: Path) -> None:
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("redline")), "serve", str(folder), "--port", str(service.port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "Address already in use" in second.stderr
    assert time.perf_counter() - started < 30


STUCK_SERVICE = """
import sys, time
from redline_service import engine
from redline_service.http import server
from redline_service.settings import ServiceSettings
def stuck(*args): time.sleep(600)
started = engine.Engine.start
async def start(self):
    await started(self)
    engine.encode_item = stuck
engine.Engine.start = start
server.serve(ServiceSettings(bundle=sys.argv[1], port=int(sys.argv[2]), drain_s=1))
"""


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults)]
)
def test_a_stuck_thread_does_not_delay_the_exit(folder: Path, sent: int, status: int) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_SERVICE, str(folder), str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        assert process.stderr is not None
        while "serving" not in (line := process.stderr.readline()):
            assert line, "the process ended before the service was ready"
        service = ServiceProcess(process, port)
        with service.connect() as connection:
            connection.sendall(post("/v1/score", json.dumps(BODIES["/v1/score"]).encode()))
            time.sleep(0.5)
            process.send_signal(sent)
            started = time.perf_counter()
            assert process.wait(30) == status
        assert time.perf_counter() - started < 15
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


def test_no_key_appears_in_any_log(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    percent_encoded = "".join(f"%{ord(character):02x}" for character in KEY)
    twice_encoded = percent_encoded.replace("%", "%25")
    with serving(folder, "--key", KEY, "--log-level", "debug", log=log) as service:
        for form in (KEY, KEY.upper(), percent_encoded, percent_encoded.upper(), twice_encoded):
            for path in (
                *(f"/key/{form}/v1/models", f"/KEY/{form}/x", f"/%6b%65%79/{form}/v1/models", f"/key%2f{form}/x"),
                *(f"/v1/models?key={form}", f"/{form}", f"/v1/models/{form}"),
            ):
                service.get(path, f"Authorization: Bearer {form}", f"X-Request-Id: {form}", f"Cookie: {form}")
            service.send(f"{KEY} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            service.send(f"GET /{form} HTTP/9.9\r\n{form}\r\n\r\n".encode())
            service.json("/v1/score", {form: form}, f"Authorization: Bearer {KEY}")
    logged = log.read_text()
    assert '"GET /v1/models" 200' in logged
    for form in (KEY, percent_encoded, twice_encoded):
        assert form.lower() not in logged.lower()


@pytest.mark.parametrize("name", ["REDLINE_KEYS", "redline_keys"])
@pytest.mark.parametrize("value", ["", " ", "[]", '[""]', '["good", ""]', '[" "]', '["a\\nb"]'])
def test_empty_keys_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises((ValidationError, SettingsError), match="key"):
        ServiceSettings(bundle="any")


def test_an_empty_key_ends_the_command_with_one_line(folder: Path) -> None:
    command = [str(Path(sys.executable).with_name("redline")), "serve", str(folder), "--port", "0"]
    refused = subprocess.run(
        [*command, "--key", "good", "--key", ""], capture_output=True, text=True, timeout=60, check=False
    )
    assert refused.returncode == 1
    assert refused.stderr.startswith("redline: keys: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.parametrize("path", ["/healthz", "/health", "/health/live", "/readyz", "/health/ready", "/"])
def test_probes_and_the_start_page_need_no_key(guarded: ServiceProcess, path: str) -> None:
    response = guarded.get(path)
    assert response.status == 200
    if path == "/":
        assert response.headers["content-type"].startswith("text/html")
        assert b"docs" in response.body
        assert b"sha256" not in response.body


def test_the_start_page_names_the_model_if_no_key_is_needed(service: ServiceProcess) -> None:
    page = service.get("/").body.decode()
    assert "default (seq2seq, sha256:" in page


def test_the_service_still_works_after_the_attacks(service: ServiceProcess, guarded: ServiceProcess) -> None:
    body = {"items": [{"prompt": PROMPT, "response": RESPONSE}]}
    assert service.json("/v1/score", body).status == 200
    assert guarded.json("/v1/score", body, f"Authorization: Bearer {KEY}").status == 200
    assert guarded.json(f"/key/{KEY}/v1/score", body).status == 200
