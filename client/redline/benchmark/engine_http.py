"""JSON requests to servers other than Redline services: time limits, repeated attempts, answers of bounded size."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import httpx

from redline.errors import AnswerTooLargeError, ConnectionFailedError, ProtocolError, RedlineError
from redline.http.answer_body import MAX_ANSWER_BYTES
from redline.http.daemon_pool import DaemonThreadPool
from redline.http.exchange import (
    CONCURRENCY,
    DEFAULT_TIMEOUT_S,
    base_url,
    connection_error,
    empty_cookie_jar,
    headers_for,
)
from redline.http.proxies import readable_proxy_errors
from redline.http.retry import RetryPolicy
from redline.http.url_redaction import without_secrets
from redline.text.printable import one_line

T = TypeVar("T")
R = TypeVar("R")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# the item, and not the request as such, is refused: it may be too long
_ITEM_REFUSED = frozenset({400, 413, 422})
_MAX_SHOWN = 300


class ItemRefusedError(RedlineError):
    """The engine refused one item; others may be accepted."""


class EngineHTTP:
    """Sends JSON to an engine. Thread-safe. Close it or use ``with``.

    Args:
        url: address of the engine, with or without the path of the endpoint.
        key: sent as a bearer token.
        timeout_s: seconds without a byte of the answer after which a request fails.
        retry: when a failed request is repeated.
        transport: for tests; replaces the network.

    Raises:
        ProtocolError: ``url`` is not an http(s) address, or the key cannot be sent in a header.
        ConfigurationError: the environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self._url = str(base_url(url))
        self._timeout_s = timeout_s
        self._retry = retry
        with readable_proxy_errors():
            self._http = httpx.Client(
                headers=headers_for(key), cookies=empty_cookie_jar(), timeout=timeout_s, transport=transport
            )

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def post(self, path: str, body: Any) -> Any:
        """The JSON answer to ``body``.

        Raises:
            ItemRefusedError: HTTP 400, 413 or 422.
            ConnectionFailedError: no answer within the retry policy.
            ProtocolError: another status, or an answer that is not JSON or too large.
        """
        return self._send("POST", path, body)

    def get(self, path: str) -> Any:
        """The JSON answer; raises as ``post`` does."""
        return self._send("GET", path, None)

    def map(self, function: Callable[[T], R], items: Sequence[T]) -> list[R]:
        """``function`` of every item, a few at a time, in order. Raises what it raises."""
        with DaemonThreadPool(min(CONCURRENCY, max(1, len(items)))) as pool:
            return [future.result() for future in [pool.submit(function, item) for item in items]]

    def _send(self, method: str, path: str, body: Any) -> Any:
        address = self._url if self._url.endswith(path) else self._url + path
        started_s, attempt = time.monotonic(), 0
        while True:
            attempt += 1
            try:
                return self._send_once(method, address, body)
            except ConnectionFailedError as error:
                wait_s = self._retry.wait_s(error, attempt, time.monotonic() - started_s)
                if wait_s is None:
                    raise
                time.sleep(wait_s)

    def _send_once(self, method: str, address: str, body: Any) -> Any:
        shown = without_secrets(address)
        try:
            with self._http.stream(method, address, json=body) as response:
                content = bytearray()
                for piece in response.iter_bytes():
                    content += piece
                    if len(content) > MAX_ANSWER_BYTES:
                        raise AnswerTooLargeError(f"{shown} answered with more than {MAX_ANSWER_BYTES} bytes")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise connection_error(error, address, self._timeout_s) from error
        if response.is_success:
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ProtocolError(f"{shown} did not answer with JSON") from error
        message = f"{shown} answered HTTP {response.status_code}{_reason(content)}"
        if response.status_code in _RETRIED:
            raise ConnectionFailedError(message)
        raise (ItemRefusedError if response.status_code in _ITEM_REFUSED else ProtocolError)(message)


def _reason(content: bytes | bytearray) -> str:
    """The engine's own message. Other parts of an answer are left out: they may repeat the text of the request."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):
        return ""
    for _ in range(3):
        if isinstance(value, dict):
            value = next((value[name] for name in ("error", "detail", "message") if name in value), None)
    return f": {one_line(value)[:_MAX_SHOWN]}" if isinstance(value, str) else ""
