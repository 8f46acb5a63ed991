"""A ``redline serve`` process under attack: started with settings, watched from outside, spoken to in raw bytes."""

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
# A body for each route that takes one.
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


class Answer(NamedTuple):
    """``status`` 0: the connection was closed without an answer. ``seconds``: from the first byte sent.

    ``unsent``: bytes of the request that were not sent when the answer was there; the connection cannot be used again.
    """

    status: int
    headers: dict[str, str]
    body: bytes
    seconds: float
    unsent: int = 0

    @property
    def code(self) -> str:
        """The error's code."""
        return str(json.loads(self.body)["error"]["code"])


def post(path: str, body: bytes, *headers: str, length: int | None = None) -> bytes:
    """A request as bytes. ``length``: what it declares, if that is not the truth."""
    size = len(body) if length is None else length
    lines = [f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", f"Content-Length: {size}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Attacked:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process = process
        self.port = port

    def connect(self, timeout_s: float = 20.0) -> socket.socket:
        """A connection of its own."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=timeout_s)

    def send(self, raw: bytes, timeout_s: float = 20.0) -> Answer:
        """One request on a connection of its own. The answer is read while the request is still being sent."""
        with self.connect(timeout_s) as connection:
            return exchange(connection, raw, timeout_s)

    def json(self, path: str, body: Any, *headers: str, timeout_s: float = 20.0) -> Answer:
        """``body`` as JSON to ``path``."""
        return self.send(post(path, json.dumps(body).encode(), *headers), timeout_s)

    def get(self, path: str, *headers: str) -> Answer:
        """One GET."""
        return self.send("\r\n".join([f"GET {path} HTTP/1.1", "Host: x", *headers, "", ""]).encode())

    def resident_mib(self, *, peak: bool = False) -> float:
        """Resident memory now, or its peak since ``forget_peak``."""
        name = "VmHWM" if peak else "VmRSS"
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(rf"{name}:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]

    def forget_peak(self) -> None:
        """Start ``resident_mib(peak=True)`` anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @contextmanager
    def watched(self) -> Iterator[list[float]]:
        """Ask /health/live twenty times a second; the seconds that each answer took."""
        took: list[float] = []
        is_over = threading.Event()

        def watch() -> None:
            while not is_over.is_set():
                took.append(self.get("/health/live").seconds)
                is_over.wait(0.05)

        thread = threading.Thread(target=watch)
        thread.start()
        try:
            yield took
        finally:
            is_over.set()
            thread.join()


def exchange(connection: socket.socket, raw: bytes, timeout_s: float = 20.0) -> Answer:
    """Send ``raw`` and read one answer."""
    started = time.perf_counter()
    connection.setblocking(False)
    received = b""
    left = memoryview(raw)
    while True:
        seconds = timeout_s - (time.perf_counter() - started)
        assert seconds > 0, f"no answer within {timeout_s} s; {received[:200]!r}"
        readable, writable, _ = select.select([connection], [connection] if left else [], [], min(seconds, 0.5))
        try:
            if writable:
                left = left[connection.send(left[:65536]) :]
            if readable:
                piece = connection.recv(65536)
                received += piece
                if not piece:
                    break
        except (BrokenPipeError, ConnectionResetError):
            if not received:
                break
            left = left[:0]
        answer = parsed(received, time.perf_counter() - started, has_body=not raw.startswith(b"HEAD "))
        if answer is not None:
            return answer._replace(unsent=len(left))
    return parsed(received, time.perf_counter() - started) or Answer(0, {}, b"", time.perf_counter() - started)


def parsed(received: bytes, seconds: float, *, has_body: bool = True) -> Answer | None:
    """The answer, once all of it is there."""
    received = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n")
    head, found, body = received.partition(b"\r\n\r\n")
    if not found:
        return None
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    if has_body and len(body) < int(headers.get("content-length", 0)):
        return None
    return Answer(int(first.split()[1]), headers, body, seconds)


@contextmanager
def serving(
    bundle: Path, *options: str, log: Path | None = None, preexec: Any = None, **settings: Any
) -> Iterator[Attacked]:
    """A service around ``bundle`` that is ready; ``settings`` come from the environment."""
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
        if found := re.match(r"serving .* on http://127.0.0.1:(\d+)$", line):
            port = int(found[1])
            break
    assert port, "".join(lines)

    def drain() -> None:
        assert process.stderr is not None
        lines.extend(process.stderr)

    reader = threading.Thread(target=drain)
    reader.start()
    try:
        yield Attacked(process, port)
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
