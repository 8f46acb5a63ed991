"""Passwords and keys that stand in addresses are in no message and no log; both clients."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from redline import AsyncRewardClient, RedlineError, RewardClient
from redline.http.url_redaction import RedactedURL, without_secrets
from tests.commands import run
from tests.redline.raw_server import call

ADDRESS = "http://user-SECRET:pw-SECRET@127.0.0.1:9/base/key/key-SECRET"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("http://127.0.0.1:8000/v1/score", "http://127.0.0.1:8000/v1/score"),
        ("https://user:pw@host:8/v1/score", "https://***@host:8/v1/score"),
        ("https://user@host", "https://***@host"),
        ("https://user:p/w@host/x", "https://***@host/x"),
        ("https://user:p@w@host/x", "https://***@host/x"),
        ("user:pw@host", "***@host"),
        ("https://host/key/KEY", "https://host/key/***"),
        ("https://host/key/KEY/v1/score", "https://host/key/***/v1/score"),
        ("https://host/a/KEY%2f/k%65y/KEY/v1", "https://host/a/KEY%2f/k%65y/***/v1"),
        ("https://host/Key//KEY/v1", "https://host/Key//***/v1"),
        ("https://host/v1?key=KEY&x=1#KEY", "https://host/v1?***#***"),
        ("https://host/v1#KEY?x", "https://host/v1#***"),
        ("https://monkey/keys/x", "https://monkey/keys/x"),
        ("", ""),
        ("key/KEY", "key/KEY"),
    ],
)
def test_secrets_in_an_address_are_replaced(url: str, shown: str) -> None:
    assert without_secrets(url) == shown


def test_an_address_is_sent_as_it_is() -> None:
    url = RedactedURL(ADDRESS)
    assert httpx.URL(url) == httpx.URL(ADDRESS)
    assert url.raw_path == b"/base/key/key-SECRET"
    assert (url.username, url.password) == ("user-SECRET", "pw-SECRET")
    assert "SECRET" not in str(url) + repr(url)


REFUSAL = b'{"error": {"code": "too_long", "message": "m", "retryable": false}}'
ANSWERS: list[Callable[[httpx.Request], httpx.Response]] = [
    lambda request: httpx.Response(200, content=b"<html>"),
    lambda request: httpx.Response(404, content=b"<html>"),
    lambda request: httpx.Response(502, content=b"<html>"),
    lambda request: httpx.Response(400, content=REFUSAL),
    lambda request: httpx.Response(200, content=b"x" * 5000),
    lambda request: httpx.Response(200, content=b"x", headers={"Content-Encoding": "br"}),
    lambda request: httpx.Response(200, content=b"{}", headers={"X-Request-Id": "redline-0"}),
]


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def test_no_error_and_no_log_has_a_secret(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uses: list[Callable[[Any], Any]] = [
        lambda client: client.models(),
        lambda client: client.wait_until_ready(timeout_s=0.05, poll_s=0.02),
    ]
    settings: list[dict[str, Any]] = [{}, *({"transport": httpx.MockTransport(answer)} for answer in ANSWERS)]
    for use in uses:
        for more in settings:
            with pytest.raises(RedlineError) as caught:
                call(is_async, use, url=ADDRESS, max_answer_bytes=1000, timeout_s=5.0, **more)
            assert "SECRET" not in "".join(traceback.format_exception(caught.value))
    assert "HTTP Request: GET http://***@127.0.0.1:9/base/key/***/v1/models" in caplog.text
    assert "SECRET" not in caplog.text


@pytest.mark.parametrize(
    "url",
    [
        "http://user:pw-SECRET@host:99999",
        "http://user:pw-SECRET@host:port",
        "http://user:12/pw-SECRET@host",
        "ftp://user:pw-SECRET@host/x",
        "http://user:pw-SECRET@\x00/",
        "pw-SECRET@host",
    ],
)
def test_an_invalid_address_is_refused_without_its_password(url: str, is_async: bool) -> None:
    with pytest.raises(RedlineError, match=r"address|unsupported|cannot be reached") as caught:
        call(is_async, lambda client: client.models(), url=url)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_proxy_that_cannot_be_used_is_named_without_its_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for value in ("nonsense://user:pw-SECRET@proxy:1", "http://user:pw-SECRET@proxy:port"):
        monkeypatch.setenv("https_proxy", value)
        for kind in (RewardClient, AsyncRewardClient):
            with pytest.raises(RedlineError, match="https_proxy is ") as caught:
                kind("http://rewards.invalid:8000")
            assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_a_command_prints_no_secret() -> None:
    ran = run("health", "--url", ADDRESS)
    assert ran.returncode == 1
    assert ran.stderr.startswith("redline: http://***@127.0.0.1:9/base/key/*** was not ready")
    assert "SECRET" not in ran.stdout + ran.stderr
