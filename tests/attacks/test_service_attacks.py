"""What one caller can do to a service: a real process, attacked as somebody would who means harm or knows no better."""

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
from tests.attacks.server import BODIES, KEY, PROMPT, RESPONSE, Attacked, exchange, post, serving
from tests.ports import free_port

pytestmark = pytest.mark.loop
BIG = 64 * 1024
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
    """Every route that reads a rendered conversation, with ``text`` in the place of one."""
    return {
        "/get_reward": {"query": [text], "prompts": [text[: len(text) // 2]]},
        "/v1/score/evaluation": {"messages": [text]},
        "/classify": {"text": text},
        "/pooling": {"input": text},
        "/v1/score": {"items": [{"prompt": text, "response": text}], "options": {"on_too_long": "truncate"}},
    }


@pytest.mark.parametrize("marker", MARKERS)
def test_texts_of_64_kb_are_answered_quickly_and_hold_up_nobody(service: Attacked, marker: str) -> None:
    text = (marker * (BIG // len(marker) + 1))[:BIG]
    with service.watched() as live_s:
        for start in ("", "[INST] <<SYS>>", "<|im_start|>user\n"):
            for path, body in text_bodies(start + text).items():
                answer = service.json(path, body)
                assert answer.status in {200, 413, 422}, (path, answer)
                assert answer.seconds < QUICK_S, (path, start)
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
def test_a_megabyte_of_nonsense_is_refused_in_bounded_time_and_memory(service: Attacked, body: str) -> None:
    service.forget_peak()
    before = service.resident_mib()
    with service.watched() as live_s:
        answer = service.send(post("/v1/score", body.encode()))
    assert answer.status in {404, 413, 422}
    assert len(answer.body) < 64 * 1024
    assert answer.seconds < QUICK_S
    assert max(live_s) < LIVE_S
    assert service.resident_mib(peak=True) - before < 100


@pytest.mark.parametrize("path", [*BODIES, "/v1/models"])
def test_without_a_key_nothing_is_read_and_little_is_held(guarded: Attacked, path: str) -> None:
    body = b'{"items": [' + b"[],".join([b""] * 10_000_000) + b"]}"
    guarded.forget_peak()
    before = guarded.resident_mib()
    with guarded.watched() as live_s:
        answer = guarded.send(post(path, body[: 30 * 2**20]))
    assert answer.status in {401, 405}
    assert answer.seconds < QUICK_S
    assert max(live_s) < LIVE_S
    assert guarded.resident_mib(peak=True) - before < 8


def test_many_callers_without_a_key_hold_64_kib_each_at_most(guarded: Attacked) -> None:
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


def test_a_larger_body_than_allowed_is_refused_on_its_headers(service: Attacked) -> None:
    answer = service.send(post("/v1/score", b"", length=10**15))
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert service.send(post("/v1/score", b"", length=0)).status == 422


@pytest.mark.parametrize("path", BODIES)
def test_a_body_that_drips_is_given_up(service: Attacked, path: str) -> None:
    with service.connect() as connection:
        connection.sendall(post(path, b"{", length=1000))
        started = time.perf_counter()
        answer = None
        while answer is None and time.perf_counter() - started < 10:
            connection.settimeout(0.2)
            try:
                answer = connection.recv(4096)
            except TimeoutError:
                connection.sendall(b" ")
    assert answer is not None, "a body that drips is read for ever"
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert 0.9 < time.perf_counter() - started < 5


def test_a_refused_body_is_not_read_for_ever(service: Attacked) -> None:
    with service.connect() as connection:
        answer = exchange(connection, post("/v1/score", b"x", length=10**9))
        assert answer.status == 413
        assert is_closed_while_dripping(connection, 10)


def is_closed_while_dripping(connection: socket.socket, seconds: float) -> bool:
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
def test_connections_that_send_no_request_are_closed(service: Attacked, sent: bytes) -> None:
    with service.connect() as connection:
        connection.sendall(sent)
        started = time.perf_counter()
        if len(sent) > 1:
            assert is_closed_while_dripping(connection, 10), "a half-open connection stays for ever"
        else:
            assert connection.recv(1) == b""
    assert time.perf_counter() - started > 0.5


def test_a_kept_connection_that_idles_is_closed(service: Attacked) -> None:
    with service.connect() as connection:
        assert exchange(connection, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").status == 200
        connection.setblocking(True)
        connection.settimeout(10)
        started = time.perf_counter()
        assert connection.recv(1) == b""
    assert time.perf_counter() - started > 1.0


def test_headers_without_end_are_refused(service: Attacked) -> None:
    for head in (b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 100_000, b"GET / HTTP/1.1\r\nx: " + b"y" * 600_000):
        answer = service.send(head)
        assert answer.status in {0, 400, 431}


def test_a_body_of_tiny_chunks_holds_up_nobody(service: Attacked) -> None:
    head = post("/v1/score", b"").replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
    with service.watched() as live_s:
        answer = service.send(head + b"1\r\nx\r\n" * 100_000 + b"0\r\n\r\n")
    assert answer.status in {400, 408, 422}
    assert max(live_s) < LIVE_S


def test_fewer_descriptors_than_connections_do_not_stop_the_service(folder: Path) -> None:
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))

    with serving(folder, preexec=few) as service:
        held = []
        for _ in range(600):
            try:
                held.append(service.connect(5))
            except OSError:
                break
        started = time.perf_counter()
        answer = service.json("/v1/score", BODIES["/v1/score"])
        assert answer.status == 200
        assert time.perf_counter() - started < 10
        for connection in held:
            connection.close()


def test_small_requests_on_a_kept_connection_do_not_wait_for_the_network(service: Attacked) -> None:
    took = []
    with service.connect() as connection:
        for _ in range(30):
            took.append(exchange(connection, b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n").seconds)
    assert sorted(took)[15] < 0.03  # 40 ms and more where TCP_NODELAY is not set


def test_the_port_is_taken_before_the_model_is_loaded(service: Attacked, folder: Path) -> None:
    started = time.perf_counter()
    command = [str(Path(sys.executable).with_name("redline")), "serve", str(folder), "--port", str(service.port)]
    second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert second.returncode == 1
    assert second.stderr.count("\n") == 1
    assert "Address already in use" in second.stderr
    assert time.perf_counter() - started < 30


STUCK = """
import sys, time
from redline_service import engine, server
from redline_service.settings import ServiceSettings
def stuck(*args): time.sleep(600)
started = engine.Engine.start
async def start(self):
    await started(self)
    engine.encoded = stuck
engine.Engine.start = start
server.serve(ServiceSettings(bundle=sys.argv[1], port=int(sys.argv[2]), drain_s=1))
"""


@pytest.mark.parametrize(
    ("sent", "status"), [(signal.SIGTERM, 0), pytest.param(signal.SIGINT, 130, marks=pytest.mark.faults)]
)
def test_a_thread_that_does_not_end_cannot_hold_up_the_exit(folder: Path, sent: int, status: int) -> None:
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK, str(folder), str(port)],
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
    )
    try:
        assert process.stderr is not None
        while "serving" not in (line := process.stderr.readline()):
            assert line, "it ended before it served"
        service = Attacked(process, port)
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


def test_no_key_reaches_any_log(folder: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    percent = "".join(f"%{ord(one):02x}" for one in KEY)
    twice = percent.replace("%", "%25")
    with serving(folder, "--key", KEY, "--log-level", "debug", log=log) as service:
        for form in (KEY, KEY.upper(), percent, percent.upper(), twice):
            for path in (
                *(f"/key/{form}/v1/models", f"/KEY/{form}/x", f"/%6b%65%79/{form}/v1/models", f"/key%2f{form}/x"),
                *(f"/v1/models?key={form}", f"/{form}", f"/v1/models/{form}"),
            ):
                service.get(path, f"Authorization: Bearer {form}", f"X-Request-Id: {form}", f"Cookie: {form}")
            service.send(f"{KEY} / HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            service.send(f"GET /{form} HTTP/9.9\r\n{form}\r\n\r\n".encode())
            service.json("/v1/score", {form: form}, f"Authorization: Bearer {KEY}")
    written = log.read_text()
    assert '"GET /v1/models" 200' in written
    for form in (KEY, percent, twice):
        assert form.lower() not in written.lower()


@pytest.mark.parametrize("name", ["REDLINE_KEYS", "redline_keys"])
@pytest.mark.parametrize("value", ["", " ", "[]", '[""]', '["good", ""]', '[" "]', '["a\\nb"]'])
def test_keys_set_to_nothing_are_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
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
def test_probes_and_the_page_need_no_key(guarded: Attacked, path: str) -> None:
    answer = guarded.get(path)
    assert answer.status == 200
    if path == "/":
        assert answer.headers["content-type"].startswith("text/html")
        assert b"docs" in answer.body
        assert b"sha256" not in answer.body


def test_the_page_names_the_model_where_no_key_is_needed(service: Attacked) -> None:
    page = service.get("/").body.decode()
    assert "default (seq2seq, sha256:" in page


def test_the_service_is_still_well(service: Attacked, guarded: Attacked) -> None:
    body = {"items": [{"prompt": PROMPT, "response": RESPONSE}]}
    assert service.json("/v1/score", body).status == 200
    assert guarded.json("/v1/score", body, f"Authorization: Bearer {KEY}").status == 200
    assert guarded.json(f"/key/{KEY}/v1/score", body).status == 200
