"""A load generator with little overhead: raw asyncio, requests prepared before, answers parsed after the measurement.

It runs in its own process (``run_apart``), so that its measurements do not wait for other work, and it takes little CPU
time from the service. It imports only the standard library, so that it starts at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import math
import pickle
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_SERIAL = b"@serial@"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)


def request_template(path: str, items: Sequence[dict[str, str]], headers: dict[str, str]) -> list[bytes]:
    """A POST request of ``items``, split at the places for its serial number: eight digits before every text.

    Every request sent has different texts, so the service cannot reuse work of another request. Items with the same
    prompt still share it.
    """
    serial = _SERIAL.decode()
    body = json.dumps({"items": [{key: f"{serial} {text}" for key, text in item.items()} for item in items]})
    length = len(body.encode()) + (8 - len(_SERIAL)) * body.count(serial)
    fields = {"Host": "127.0.0.1", "Content-Type": "application/json", "Content-Length": str(length), **headers}
    head = f"POST {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return f"{head}\r\n{body}".encode().split(_SERIAL)


@dataclass(frozen=True)
class Stream:
    """Requests of one caller: an open loop if ``at_s`` is given, else a closed loop over ``connections``.

    Args:
        templates: from ``request_template``, used in turn, each time with the next serial number.
        at_s: times to send the requests, in seconds from the start, however many are still unanswered.
        requests: number of requests of a closed loop; 0: no limit.
        until_s: seconds after which a closed loop sends no more requests.
        from_s: seconds after which a closed loop begins.
        is_background: cancelled as soon as all other streams have ended.
        source: the address from which it connects.
        give_up_s: seconds after the due time of a request at which a connection without an answer is closed.
    """

    templates: Sequence[Sequence[bytes]]
    first_serial: int
    at_s: Sequence[float] | None = None
    connections: int = 1
    requests: int = 0
    until_s: float = math.inf
    from_s: float = 0.0
    is_background: bool = False
    source: str = "127.0.0.1"
    give_up_s: float = 120.0


@dataclass(frozen=True)
class RequestResult:
    """The result of one request; times in seconds from the start.

    Args:
        due_s: when an open loop should have sent it; in a closed loop, when it was sent.
        status: HTTP status; 0: the connection failed; -1: no answer before ``give_up_s``.
        code: error code of an answer that is an error.
        scored: number of items with a finite score.
        timing_ms: the parts of ``Server-Timing``.
    """

    due_s: float
    sent_s: float
    ended_s: float
    status: int
    code: str = ""
    scored: int = 0
    retry_after: str | None = None
    timing_ms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """The request results of each stream, the CPU time of the generator, and the most connections of each stream."""

    results: list[list[RequestResult]]
    seconds: float
    cpu_seconds: float
    connections: list[int] = field(default_factory=list)


class _Connection(asyncio.Protocol):
    """One kept-alive connection with at most one request in flight."""

    def __init__(self) -> None:
        self._received = b""
        self._head = self._size = -1
        self._answer: asyncio.Future[tuple[float, bytes, int]] | None = None
        self._transport: asyncio.Transport | None = None
        self.is_open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport, self.is_open = transport, True

    def send(self, request: bytes) -> asyncio.Future[tuple[float, bytes, int]]:
        """Send a request. The future has the time at which the answer ended, the answer, and the size of its head."""
        assert self._transport is not None
        self._received, self._size = b"", -1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._size < 0:
            end = self._received.find(b"\r\n\r\n")
            if end < 0:
                return
            length = _LENGTH.search(self._received, 0, end + 2)
            if length is None:  # every answer of the service has a length; without one it cannot be measured
                self.close()
                return
            self._head = end + 4
            self._size = self._head + int(length[1])
        if len(self._received) >= self._size and self._answer is not None and not self._answer.done():
            self._answer.set_result((time.perf_counter(), self._received, self._head))

    def connection_lost(self, error: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(ConnectionResetError("closed before the answer was complete"))

    def close(self) -> None:
        """Close at once, even with a request in flight."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()


class _Caller:
    """Sends the requests of one stream over its own connections, as many as are needed at once."""

    def __init__(self, stream: Stream, port: int, started: float) -> None:
        self._stream, self._port, self._started = stream, port, started
        self._sent = 0
        self._idle: list[_Connection] = []
        self._raw: list[tuple[float, float, float, int, bytes, int]] = []
        self.open = self.most_open = 0

    async def _connected(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
            self.open -= 1
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        loop = asyncio.get_running_loop()
        try:
            _, connection = await loop.create_connection(
                _Connection, "127.0.0.1", self._port, local_addr=(self._stream.source, 0)
            )
        except BaseException:
            self.open -= 1
            raise
        return connection

    async def _send_next(self, due: float | None) -> int:
        """Send the next request; returns its status, see ``RequestResult``."""
        serial = self._stream.first_serial + self._sent
        self._sent += 1
        templates = self._stream.templates
        request = (b"%08d" % serial).join(templates[serial % len(templates)])
        sent = time.perf_counter()
        due = sent if due is None else due
        connection: _Connection | None = None
        status, answer, head = 0, b"", 0
        try:
            async with asyncio.timeout(due + self._stream.give_up_s - sent):
                connection = await self._connected()
                sent = time.perf_counter()
                ended, answer, head = await connection.send(request)
            status = int(answer[9:12])
        except TimeoutError:
            ended, status = time.perf_counter(), -1
        except OSError:
            ended = time.perf_counter()
        finally:
            if connection is not None:
                if status <= 0 or b"connection: close" in answer[:head].lower():
                    connection.close()
                    self.open -= 1
                else:
                    self._idle.append(connection)
        start = self._started
        self._raw.append((due - start, sent - start, ended - start, status, answer, head))
        return status

    async def run(self) -> None:
        """Send all requests of the stream."""
        if self._stream.at_s is not None:
            await self._open_loop(self._stream.at_s)
            return
        await asyncio.sleep(self._started + self._stream.from_s - time.perf_counter())
        await asyncio.gather(*(self._closed_loop() for _ in range(self._stream.connections)))

    async def _open_loop(self, at_s: Sequence[float]) -> None:
        in_flight: set[asyncio.Task[int]] = set()
        for offset in at_s:
            due = self._started + offset
            wait = due - time.perf_counter()
            if wait > 0:
                await asyncio.sleep(wait)
            task = asyncio.create_task(self._send_next(due))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        await asyncio.gather(*in_flight)

    async def _closed_loop(self) -> None:
        stream = self._stream
        while self._sent < (stream.requests or sys.maxsize) and time.perf_counter() - self._started < stream.until_s:
            if await self._send_next(None) != 200:
                await asyncio.sleep(0.05)  # do not send refused requests again in a busy loop

    def results(self) -> list[RequestResult]:
        """The results of all requests that have ended; answers are parsed here."""
        return [
            RequestResult(due, sent, ended, status, **_parsed(status, answer[:head], answer[head:]))
            for due, sent, ended, status, answer, head in self._raw
        ]


def _parsed(status: int, head: bytes, body: bytes) -> dict[str, Any]:
    """The fields of a ``RequestResult`` that are in the answer."""
    if status <= 0:
        return {}
    fields = dict(line.partition(": ")[::2] for line in head.decode("latin-1").lower().split("\r\n"))
    timing = re.findall(r"(\w+);dur=([\d.]+)", fields.get("server-timing", ""))
    found: dict[str, Any] = {
        "retry_after": fields.get("retry-after"),
        "timing_ms": {name: float(ms) for name, ms in timing},
    }
    with contextlib.suppress(ValueError, AttributeError, KeyError, TypeError):
        answer = json.loads(body)
        if status == 200:
            found["scored"] = sum(math.isfinite(item.get("score", math.nan)) for item in answer["items"])
        else:
            found["code"] = answer["error"]["code"]
    return found


async def generate(port: int, streams: Sequence[Stream]) -> Recording:
    """Run the streams at the same time, until all requests of the streams not in the background are answered."""
    started, cpu = time.perf_counter(), time.process_time()
    callers = [_Caller(stream, port, started) for stream in streams]
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    pairs = list(zip(tasks, streams, strict=True))
    try:
        await asyncio.gather(*(task for task, stream in pairs if not stream.is_background))
    finally:
        for task in tasks:
            task.cancel()
        ends = await asyncio.gather(*tasks, return_exceptions=True)
    for end in ends:
        if isinstance(end, Exception):
            raise end
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return Recording([caller.results() for caller in callers], seconds, cpu, [c.most_open for c in callers])


def run_apart(port: int, streams: Sequence[Stream], timeout_s: float) -> Recording:
    """``generate`` in its own process. Raises CalledProcessError, TimeoutExpired."""
    command = [sys.executable, "-m", "benchmarks.speed.load_generator"]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        command, input=pickle.dumps((port, streams)), stdout=subprocess.PIPE, timeout=timeout_s, check=True, cwd=root
    )
    recording: Recording = pickle.loads(done.stdout)
    return recording


def main() -> None:
    """The process of ``run_apart``: reads pickled streams from stdin, writes a pickled recording to stdout."""
    from benchmarks.speed.load_generator import generate  # so that the types are pickled under this name, not __main__

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    port, streams = pickle.load(sys.stdin.buffer)
    gc.disable()
    sys.stdout.buffer.write(pickle.dumps(asyncio.run(generate(port, streams))))


if __name__ == "__main__":
    main()
