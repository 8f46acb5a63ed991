"""A ``redline serve`` process for the attack tests: started with settings, sent raw bytes, observed from outside."""

from __future__ import annotations

import json
import os
import re
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

REDLINE = str(Path(sys.executable).with_name("redline"))
KEY = "secret-key-1"
PROMPT = "How do I reset my router?"
RESPONSE = "Hold the round button."
# A valid body for each route that takes one.
BODIES: dict[str, Any] = {
    "/v1/score": {"items": [{"prompt": PROMPT, "response": RESPONSE}]},
    "/v1/correct": {"items": [{"prompt": PROMPT, "response": RESPONSE}]},
    "/get_reward": {"prompts": [PROMPT], "responses": [RESPONSE]},
    "/v1/score/evaluation": {"model": "m", "messages": [f"<|user|>{PROMPT}<|end|><|assistant|>{RESPONSE}<|end|>"]},
    "/classify": {"input": f"<|user|>{PROMPT}<|end|><|assistant|>{RESPONSE}<|end|>"},
    "/v1/embeddings": {"input": f"<|user|>{PROMPT}<|end|><|assistant|>{RESPONSE}<|end|>"},
    "/pooling": {"input": f"<|user|>{PROMPT}<|end|><|assistant|>{RESPONSE}<|end|>"},
    "/verify": {
        "responses_create_params": {"input": PROMPT},
        "response": {"output": [{"type": "message", "role": "assistant", "content": RESPONSE}]},
    },
}


class Response(NamedTuple):
    """An HTTP response.

    ``status``: 0 if the connection was closed without a response. ``seconds``: from the first byte of the request to
    the last byte of the response. ``unsent``: bytes of the request that had not been sent by then; if there are any,
    the connection cannot be used again.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    unsent: int = 0

    @property
    def code(self) -> str:
        """The code of the error in the body."""
        return str(json.loads(self.body)["error"]["code"])


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A request as bytes. ``length``: its Content-Length, if it differs from the length of ``body``."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class ServiceProcess:
    """A running service process."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def connect(self, timeout_s: float = 20.0) -> socket.socket:
        """Open a connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def send(self, raw: bytes, timeout_s: float = 20.0) -> Response:
        """Send one request on a new connection. The response is read while the request is still being sent."""
        with self.connect(timeout_s) as connection:
            return exchange(connection, raw, timeout_s)

    def json(self, path: str, body: Any, *headers: str, timeout_s: float = 20.0) -> Response:
        """Send ``body`` as JSON to ``path``."""
        return self.send(post(path, json.dumps(body).encode(), *headers), timeout_s)

    def get(self, path: str, *headers: str) -> Response:
        """Send a GET request."""
        return self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())

    def resident_mib(self, *, peak: bool = False) -> float:
        """Resident memory in MiB: now, or its peak since ``reset_peak``."""
        name = "VmHWM" if peak else "VmRSS"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def reset_peak(self) -> None:
        """Reset the peak that ``resident_mib(peak=True)`` reports."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @contextmanager
    def probed(self) -> Iterator[list[float]]:
        """Request /health/live twenty times a second; yields the seconds that each response took."""
        latencies_s: list[float] = []
        is_finished = threading.Event()

        def probe() -> None:
            while not is_finished.is_set():
                latencies_s.append(self.get("/health/live").seconds)
                is_finished.wait(0.05)

        thread = threading.Thread(target=probe)
        thread.start()
        try:
            yield latencies_s
        finally:
            is_finished.set()
            thread.join()


def exchange(connection: socket.socket, raw: bytes, timeout_s: float = 20.0) -> Response:
    """Send the bytes ``raw`` and read one response."""
    started = time.perf_counter()
    connection.setblocking(False)
    received = b""
    unsent = memoryview(raw)
    while True:
        seconds_left = timeout_s - (time.perf_counter() - started)
        assert seconds_left > 0, f"no response within {timeout_s} s; {received[:200]!r}"
        readable, writable, _ = select.select([connection], [connection] if unsent else [], [], min(seconds_left, 0.5))
        try:
            if writable:
                unsent = unsent[connection.send(unsent[:65536]) :]
            if readable:
                data = connection.recv(65536)
                received += data
                if not data:
                    break
        except (BrokenPipeError, ConnectionResetError):
            if not received:
                break
            unsent = unsent[:0]
        response = parse_response(received, time.perf_counter() - started, has_body=not raw.startswith(b"HEAD "))
        if response is not None:
            return response._replace(unsent=len(unsent))
    return parse_response(received, time.perf_counter() - started) or Response(
        0, {}, b"", time.perf_counter() - started
    )


def parse_response(received: bytes, seconds: float, *, has_body: bool = True) -> Response | None:
    """The response; None if it has not arrived completely."""
    received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, separator, body = received.partition(b"\r\n\r\n")
    if not separator:
        return None
    status_line, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if has_body and len(body) < int(headers.get("content-length", 0)):
        return None
    return Response(int(status_line.split()[1]), headers, body, seconds)


@contextmanager
def serving(
    bundle: Path, *options: str, log: Path | None = None, preexec: Any = None, **settings: Any
) -> Iterator[ServiceProcess]:
    """Run a service around ``bundle``; yields when it is ready. ``settings`` are set in its environment."""
    environment = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1"}
    environment |= {f"REDLINE_{name.upper()}": str(value) for name, value in settings.items()}
    process = subprocess.Popen(
        [REDLINE, "serve", str(bundle), "--port", "0", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=preexec,  # noqa: PLW1509
    )
    assert process.stderr is not None
    lines: list[str] = []
    port = 0
    for line in process.stderr:
        lines.append(line)
        if match := re.match(r"serving .* on http://127.0.0.1:(\d+)$", line):
            port = int(match[1])
            break
    assert port, "".join(lines)

    def drain() -> None:
        assert process.stderr is not None
        lines.extend(process.stderr)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        yield ServiceProcess(process, port)
    finally:
        if process.poll() is None:
            process.terminate()
        try:
            process.wait(30)
        finally:
            process.kill()
            process.wait()
            reader.join()
            process.stderr.close()
            if log is not None:
                log.write_text("".join(lines))
