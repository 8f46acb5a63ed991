"""The pure half of both clients: what to send, and what an answer means."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from redline.errors import ConnectionFailedError, ProtocolError, RedlineError, ServiceError
from redline.results import ScoreResult
from redline.wire import (
    DEADLINE_HEADER,
    REQUEST_ID_HEADER,
    ErrorCode,
    ErrorResponse,
    ItemError,
    ItemResult,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
)

A = TypeVar("A", bound=BaseModel)
DEFAULT_URL = "http://127.0.0.1:8000"
# Longer than a service takes to answer or to shed (85 s).
DEFAULT_TIMEOUT_S = 100.0
ITEMS_PER_REQUEST = 64
CONCURRENCY = 8


def headers_for(key: str | None, timeout_s: float) -> dict[str, str]:
    """The headers of every request. Raises ProtocolError where the key cannot stand in one."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ProtocolError("the key holds characters that an HTTP header cannot carry")
    headers = {DEADLINE_HEADER: f"{timeout_s:g}"}
    return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}


def as_items(items: Iterable[ScoreItem | dict[str, Any]]) -> list[ScoreItem]:
    """Items checked before anything is sent. Raises ProtocolError naming position and field."""
    checked = []
    for position, item in enumerate(items):
        try:
            checked.append(item if isinstance(item, ScoreItem) else ScoreItem.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ProtocolError(f"item {position}: {where + ': ' if where else ''}{message}") from error
    return checked


def score_body(model: str, items: Sequence[ScoreItem], options: ScoreOptions) -> dict[str, Any]:
    """The JSON of one scoring request."""
    return ScoreRequest(model=model, items=list(items), options=options).model_dump(mode="json", exclude_none=True)


def parse(response: httpx.Response, answer: type[A]) -> A:
    """The typed answer in ``response``.

    Raises:
        ServiceError: the service refused.
        ProtocolError: this is not a Redline service's answer.
    """
    if response.is_success:
        try:
            return answer.model_validate_json(response.content)
        except ValidationError as error:
            raise ProtocolError(f"{response.request.url} did not answer as a Redline service does") from error
    try:
        body = ErrorResponse.model_validate_json(response.content).error
    except ValidationError as error:
        if response.status_code in {502, 503, 504}:  # a proxy in front of a service that is away
            raise ConnectionFailedError(f"{response.request.url} answered HTTP {response.status_code}") from error
        raise ProtocolError(
            f"{response.request.url} answered HTTP {response.status_code} without a Redline error"
        ) from error
    raise ServiceError(body, response.status_code, _retry_after(response), response.headers.get(REQUEST_ID_HEADER))


def connection_error(error: httpx.HTTPError | httpx.InvalidURL, url: str) -> RedlineError:
    """httpx's exception as ours, once, at the border it crosses."""
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return ProtocolError(f"{url!r} is not an http(s) address")
    if isinstance(error, httpx.TimeoutException):
        return ConnectionFailedError(f"no answer from {url} in time ({type(error).__name__})")
    return ConnectionFailedError(f"{url} cannot be reached: {str(error) or type(error).__name__}")


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After")
    try:
        return None if value is None else max(0.0, float(value))
    except ValueError:
        return None  # the HTTP-date form; our own waits do


def is_too_much_at_once(error: RedlineError, items: int = 2) -> bool:
    """Whether the service ran out of time on a request that could have been smaller: halves are sent instead."""
    return items > 1 and isinstance(error, ServiceError) and error.code == ErrorCode.TIMED_OUT


def chunks(count: int, size: int) -> list[range]:
    """Positions 0 to ``count - 1`` in runs of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class Gathered:
    """Answers of several requests put back into one order."""

    def __init__(self, items: Sequence[ScoreItem]) -> None:
        self.items = items
        self._results: list[ItemResult | None] = [None] * len(items)
        self._responses: list[ScoreResponse] = []

    def add(self, positions: Sequence[int], response: ScoreResponse) -> list[int]:
        """Take an answer; returns the positions whose error is retryable. Raises ProtocolError."""
        if len(response.items) != len(positions):
            raise ProtocolError(f"{len(response.items)} answers for {len(positions)} items")
        self._responses.append(response)
        for position, result in zip(positions, response.items, strict=True):
            self._results[position] = result
        answered = zip(positions, response.items, strict=True)
        return [p for p, r in answered if isinstance(r, ItemError) and r.error.retryable]

    def result(self) -> ScoreResult:
        """Everything, in order."""
        items = [item for item in self._results if item is not None]
        if len(items) != len(self.items):
            raise ProtocolError("an item was left without an answer")
        last = self._responses[-1] if self._responses else None
        digests = tuple(dict.fromkeys(r.model.digest for r in self._responses))
        if last is None:
            return ScoreResult(items, None, None, digests)
        return ScoreResult(items, last.model, last.options, digests)
