"""Commands as a user starts them, in processes of their own, and small servers for them to speak to."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx

from redline.testing import FakeService
from redline.wire import ErrorBody, ErrorCode, ErrorResponse

LAUNCH = [sys.executable, str(Path(__file__).with_name("launch.py"))]
REDLINE = [sys.executable, "-m", "redline_cli"]
ENVIRONMENT = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1", "COLUMNS": "200"}


def start(*arguments: str, fsize: int | None = None, **options: Any) -> subprocess.Popen[str]:
    """``redline ARGUMENTS``, its output in pipes unless ``options`` say otherwise."""
    limit = [] if fsize is None else ["--fsize", str(fsize)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    return subprocess.Popen([*LAUNCH, *limit, *REDLINE, *arguments], env=ENVIRONMENT, text=True, **{**pipes, **options})


def run(*arguments: str, fsize: int | None = None, **options: Any) -> subprocess.CompletedProcess[str]:
    """``redline ARGUMENTS`` to its end."""
    process = start(*arguments, fsize=fsize, **options)
    with ended(process):
        out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """The process, which is gone afterwards."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdout, process.stderr, process.stdin):
            if pipe is not None:
                with suppress(OSError):
                    pipe.close()


@contextmanager
def served(fake: FakeService, *, is_overloaded: bool = False) -> Iterator[str]:
    """The URL of a server that answers as ``fake`` does or, if it is overloaded, refuses to score."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(b"")

        def do_POST(self) -> None:
            self._answer(self.rfile.read(int(self.headers["Content-Length"])))

        def _answer(self, body: bytes) -> None:
            if is_overloaded and body:
                error = ErrorResponse(error=ErrorBody.of(ErrorCode.OVERLOADED, "busy"))
                status, content = 503, json.dumps(error.model_dump()).encode()
            else:
                request = httpx.Request(self.command, f"http://fake{self.path}", content=body)
                answer = fake.transport.handle_request(request)
                status, content = answer.status_code, answer.read()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class Silent:
    """A server that accepts connections, as many as come, and never says anything; ``wait`` for one to be there."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._connections: list[socket.socket] = []
        self._has_connection = threading.Event()
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while len(self._connections) < 50:
                self._connections.append(self._listener.accept()[0])
                self._has_connection.set()

    def wait(self) -> None:
        """Return once somebody has connected."""
        assert self._has_connection.wait(60)
        time.sleep(0.2)

    def close(self) -> None:
        """End all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        for connection in [self._listener, *self._connections]:
            connection.close()
