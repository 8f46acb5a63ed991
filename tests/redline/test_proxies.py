"""Proxies of the environment: not for loopback, and named where they are in the way."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import certifi
import pytest

from redline import AsyncRewardClient, ConfigurationError, ProtocolError, RewardClient
from redline.errors import ConnectionFailedError
from redline.http.proxies import is_loopback, proxy_for
from redline.http.retry import NO_RETRY
from redline.wire import READY_PATH


class _Server(ThreadingHTTPServer):
    seen: list[str]


class _Handler(BaseHTTPRequestHandler):
    """Ready, if asked directly; as a proxy it refuses."""

    def do_GET(self) -> None:
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        is_direct = self.path == READY_PATH
        body = b'{"status": "ready"}' if is_direct else b"<html>not allowed</html>"
        self.send_response(200 if is_direct else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    server = _Server(("127.0.0.1", 0), _Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.mark.parametrize("host", ["localhost", "a.localhost", "127.0.0.1", "127.8.9.1", "::1", "0.0.0.0", "LOCALHOST."])
def test_this_machine_is_loopback(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["10.0.0.1", "rewards", "localhost.example.org", "2001:db8::1", ""])
def test_another_machine_is_not(host: str) -> None:
    assert not is_loopback(host)


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "nonsense://x"])
@pytest.mark.parametrize("name", ["http_proxy", "all_proxy"])
def test_a_loopback_address_is_reached_without_a_proxy(
    server: _Server, monkeypatch: pytest.MonkeyPatch, name: str, proxy: str
) -> None:
    monkeypatch.setenv(name, proxy)
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with RewardClient(url, retry=NO_RETRY) as client:
        client.wait_until_ready(5)

    async def ask() -> None:
        async with AsyncRewardClient(url, retry=NO_RETRY) as client:
            await client.wait_until_ready(5)

    asyncio.run(ask())
    assert server.seen == [READY_PATH] * 2


def test_a_proxy_that_answers_is_named_without_its_password(server: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
    port = server.server_address[1]
    monkeypatch.setenv("http_proxy", f"http://user:secret@127.0.0.1:{port}")
    with RewardClient("http://rewards.invalid:8000", retry=NO_RETRY) as client, pytest.raises(ProtocolError) as failed:
        client.models()
    assert f"the proxy http://127.0.0.1:{port}" in str(failed.value)
    assert "secret" not in str(failed.value)


def test_a_proxy_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    with (
        RewardClient("http://rewards.invalid:8000", retry=NO_RETRY) as client,
        pytest.raises(ConnectionFailedError, match=r"through the proxy http://127\.0\.0\.1:9"),
    ):
        client.models()


@pytest.mark.parametrize(("proxy", "message"), [("socks5://proxy:1080", "SOCKS"), ("nonsense://x", "cannot be used")])
def test_a_proxy_that_httpx_cannot_use_is_a_configuration_error(
    monkeypatch: pytest.MonkeyPatch, proxy: str, message: str
) -> None:
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(ProtocolError, match=message):
        RewardClient("http://rewards.invalid:8000")
    with pytest.raises(ProtocolError, match=message):
        AsyncRewardClient("http://rewards.invalid:8000")


def test_no_proxy_is_honoured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert proxy_for("http://rewards.example:8000") == "http://127.0.0.1:9"
    monkeypatch.setenv("no_proxy", "rewards.example")
    assert proxy_for("http://rewards.example:8000") is None


@pytest.fixture
def junk(tmp_path: Path) -> Path:
    """Files and folders that are no certificates."""
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("no certificate")
    (tmp_path / "half").write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    os.mkfifo(tmp_path / "pipe")
    return tmp_path


@pytest.mark.parametrize(
    ("name", "file", "reason"),
    [
        ("SSL_CERT_FILE", "nothing", "No such file or directory"),
        ("SSL_CERT_FILE", "empty/file", "Not a directory"),
        ("SSL_CERT_FILE", "empty", "it has no readable certificates"),
        ("SSL_CERT_FILE", "text", "it has no readable certificates"),
        ("SSL_CERT_FILE", "half", "it has no readable certificates"),
        ("SSL_CERT_FILE", "pipe", "not a regular file"),
        ("SSL_CERT_FILE", "", "not a regular file"),
        ("SSL_CERT_DIR", "nothing", "No such file or directory"),
        ("SSL_CERT_DIR", "text", "Not a directory"),
        ("SSLKEYLOGFILE", "nothing/log", "No such file or directory"),
    ],
)
def test_certificates_that_cannot_be_used_are_named(
    name: str, file: str, reason: str, junk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for other in ("SSL_CERT_FILE", "SSL_CERT_DIR", "SSLKEYLOGFILE"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(junk / file))
    message = f"{name} is {str(junk / file)!r}, which cannot be used: {reason}"
    for kind in (RewardClient, AsyncRewardClient):
        for url in ("http://127.0.0.1:9", "https://rewards.invalid"):
            with pytest.raises(ConfigurationError) as failed:
                kind(url)
            assert str(failed.value) == message
    assert issubclass(ConfigurationError, ProtocolError)


def test_usable_certificates_are_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSL_CERT_DIR", f"{tmp_path}{os.pathsep}{tmp_path}")
    RewardClient("https://rewards.invalid").close()
    monkeypatch.setenv("SSL_CERT_FILE", certifi.where())
    RewardClient("https://rewards.invalid").close()
    monkeypatch.setenv("SSL_CERT_DIR", str(tmp_path / "nothing"))  # the file comes first, as with httpx
    RewardClient("https://rewards.invalid").close()
