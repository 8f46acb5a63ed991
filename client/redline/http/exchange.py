"""Builds requests and parses answers for both clients; does no I/O."""

from __future__ import annotations

import math
import secrets
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Any, Generic, Literal, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from redline.errors import ConnectionFailedError, ProtocolError, RedlineError, ServiceError
from redline.http.answer_body import ACCEPTED_ENCODINGS, Answer
from redline.http.answer_checks import check_answer, check_consistent, check_objects
from redline.http.answer_limits import largest_answer_bytes
from redline.http.proxies import proxy_for
from redline.http.url_redaction import RedactedURL, without_secrets
from redline.results import CorrectResult, Result, ScoreResult
from redline.text.printable import one_line
from redline.wire import (
    CORRECT_PATH,
    DEADLINE_HEADER,
    MODELS_PATH,
    REQUEST_ID_HEADER,
    SCORE_PATH,
    ErrorBody,
    ErrorCode,
    ErrorResponse,
    ItemError,
    ResponseItem,
    ScoreItem,
    ScoreOptions,
    ScoreRequest,
    ScoreResponse,
)
from redline.wire.correction import CorrectOptions, CorrectRequest, CorrectResponse

A = TypeVar("A", bound=BaseModel)
Item = TypeVar("Item", bound=ResponseItem)
R = TypeVar("R", bound=Result[Any])
DEFAULT_URL = "http://127.0.0.1:8000"
# Longer than the time in which a service answers or refuses a request (85 s).
DEFAULT_TIMEOUT_S = 100.0
_MAX_TIMEOUT_S = 1e9  # limit of sockets
ITEMS_PER_REQUEST = 64
CONCURRENCY = 8


def check_settings(timeout_s: float, max_answer_bytes: int) -> None:
    """Raise ValueError for settings that a client cannot use."""
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise ValueError(f"timeout_s is {timeout_s}; it must be above 0 and at most {_MAX_TIMEOUT_S:g}")
    if max_answer_bytes < 1:
        raise ValueError(f"max_answer_bytes is {max_answer_bytes}; it must be above 0")


def base_url(url: str) -> httpx.URL:
    """``url`` as the base of every path. Raises ProtocolError if it is malformed."""
    try:
        parsed = httpx.URL(url.rstrip("/"))
        is_valid = parsed.host is not None and (parsed.port or 0) < 2**16  # decoding the host may fail, too
    except (httpx.InvalidURL, UnicodeError):
        raise _invalid_address(url) from None  # the cause may contain a password
    if not is_valid:
        raise _invalid_address(url)
    return parsed


def _invalid_address(url: str) -> ProtocolError:
    return ProtocolError(f"{without_secrets(url)!r} is not an http(s) address")


def headers_for(key: str | None) -> dict[str, str]:
    """The headers of every request. Raises ProtocolError if the key cannot be sent in one."""
    if key is not None and not (key.isascii() and key.isprintable()):
        raise ProtocolError("the key has characters that an HTTP header cannot have")
    headers = {"Accept-Encoding": ACCEPTED_ENCODINGS}
    return headers if key is None else {**headers, "Authorization": f"Bearer {key}"}


def empty_cookie_jar() -> CookieJar:
    """A cookie jar that accepts no cookies: a service sets none, and an invalid one would break later requests."""
    return CookieJar(DefaultCookiePolicy(allowed_domains=[]))


def new_request(
    http: httpx.Client | httpx.AsyncClient, method: str, path: str, body: Any, timeout_s: float, request_id: str
) -> httpx.Request:
    """A request with the headers for its deadline and its request id."""
    headers = {DEADLINE_HEADER: f"{timeout_s:g}", REQUEST_ID_HEADER: request_id}
    request = http.build_request(method, path, json=body, headers=headers, timeout=timeout_s)
    request.url = RedactedURL(request.url)
    return request


def model_path(name: str) -> str:
    """Path of the description of model ``name``."""
    return f"{MODELS_PATH}/{quote(name)}"


class Ready(BaseModel):
    """Answer to ``GET /readyz`` of a service that is ready."""

    status: Literal["ready"]


def as_items(items: Iterable[ResponseItem | dict[str, Any]], kind: type[Item]) -> list[Item]:
    """Validate items before anything is sent. Raises ProtocolError naming position and field."""
    checked = []
    for position, item in enumerate(items):
        try:
            if isinstance(item, ResponseItem) and type(item) is not kind:
                item = item.payload()
            checked.append(item if isinstance(item, kind) else kind.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            message = str(first["msg"]).removeprefix("Value error, ")
            raise ProtocolError(f"item {position}: {field + ': ' if field else ''}{message}") from error
    return checked


def parse(answer: Answer, kind: type[A]) -> A:
    """Parse ``answer`` as ``kind``.

    Raises:
        ServiceError: the service refused the request.
        ProtocolError: it is not the answer of a Redline service.
    """
    if answer.is_success:
        try:
            parsed = kind.model_validate_json(answer.body, strict=True)
        except ValidationError as error:
            raise ProtocolError(f"{answer.url} did not answer as a Redline service does{_by_proxy(answer)}") from error
        check_objects(answer.body, parsed)
        return parsed
    try:
        refusal = ErrorResponse.model_validate_json(answer.body, strict=True)
    except ValidationError as error:
        if answer.status in {502, 503, 504}:  # a proxy whose service is unreachable
            raise ConnectionFailedError(f"{answer.url} answered HTTP {answer.status}{_by_proxy(answer)}") from error
        raise ProtocolError(
            f"{answer.url} answered HTTP {answer.status} without a Redline error{_by_proxy(answer)}"
        ) from error
    check_objects(answer.body, refusal)
    raise ServiceError(
        refusal.error, answer.status, retry_after_s(answer.headers), answer.headers.get(REQUEST_ID_HEADER)
    )


def _by_proxy(answer: Answer) -> str:
    proxy = proxy_for(answer.url)
    return "" if proxy is None else f"; the proxy {proxy} from the environment was used (see no_proxy)"


def connection_error(
    error: httpx.HTTPError | httpx.InvalidURL | TimeoutError, url: str, timeout_s: float
) -> RedlineError:
    """Convert an exception of httpx or of the deadline to one of this package."""
    if isinstance(error, (httpx.UnsupportedProtocol, httpx.InvalidURL)):
        return _invalid_address(url)
    address = without_secrets(url)
    if isinstance(error, (httpx.TimeoutException, TimeoutError)):
        return ConnectionFailedError(f"no answer from {address} within {timeout_s:.3g} s ({type(error).__name__})")
    proxy = proxy_for(url)
    through = "" if proxy is None else f" through the proxy {proxy} from the environment"
    return ConnectionFailedError(
        f"{address} cannot be reached{through}: {one_line(str(error)) or type(error).__name__}"
    )


def retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds to wait by the Retry-After header (a number or a date); None if there is no valid one."""
    value = headers.get("Retry-After", "")
    try:
        seconds = float(value)
    except ValueError:
        seconds = _seconds_until(value, headers.get("Date"))
    return None if math.isnan(seconds) else max(0.0, seconds)


def _seconds_until(date: str, now: str | None) -> float:
    """Seconds from ``now`` (by default this machine's time) until ``date``; NaN if it is not a date."""
    try:
        start = datetime.now(UTC) if now is None else parsedate_to_datetime(now)
        return (parsedate_to_datetime(date) - start).total_seconds()
    except (ValueError, TypeError, OverflowError):  # TypeError: only one of the two has a time zone
        return math.nan


def should_split(error: RedlineError, items: int = 2) -> bool:
    """Whether the service timed out on a request that can be split into halves."""
    return items > 1 and isinstance(error, ServiceError) and error.code == ErrorCode.TIMED_OUT


def chunks(count: int, size: int) -> list[range]:
    """Positions 0 to ``count - 1`` in runs of at most ``size``."""
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


class Batch(Generic[R]):
    """One call to score or correct: splits it into requests and collects their answers in order.

    Args:
        request: the request with all items; parts of it are sent.
        answer: model of the answer to one part.
        result: class of the result of the whole call.
    """

    def __init__(
        self,
        path: str,
        request: ScoreRequest | CorrectRequest,
        answer: type[ScoreResponse | CorrectResponse],
        result: type[R],
    ) -> None:
        self.path = path
        self._answer = answer
        # items without an id get a unique one, which is removed from the results
        unique = secrets.token_hex(8)
        self._positions_without_id = {position for position, item in enumerate(request.items) if item.id is None}
        items = [
            item.model_copy(update={"id": f"{unique}-{position}"}) if item.id is None else item
            for position, item in enumerate(request.items)
        ]
        self._request = request.model_copy(update={"items": items})
        self._result = result
        self._items: list[Any] = [None] * len(request.items)
        self._responses: list[ScoreResponse | CorrectResponse] = []

    def parts(self, size: int) -> list[list[int]]:
        """All positions, in runs of at most ``size``."""
        return [list(part) for part in chunks(len(self._items), size)]

    def body(self, positions: Sequence[int]) -> dict[str, Any]:
        """The JSON body for the items at ``positions``."""
        items = [self._request.items[i] for i in positions]
        return self._request.model_copy(update={"items": items}).model_dump(mode="json", exclude_none=True)

    def largest_answer_bytes(self, positions: Sequence[int]) -> int:
        """Maximum bytes of an answer for the items at ``positions``."""
        return largest_answer_bytes(self._request, positions)

    def read(self, positions: Sequence[int], answer: Answer) -> ScoreResponse | CorrectResponse:
        """Parse and check an answer for the items at ``positions``. Changes no state, so any thread may call it.

        Raises:
            ServiceError, ConnectionFailedError: as ``parse`` does.
            ProtocolError: it is not consistent with the request.
        """
        response = parse(answer, self._answer)
        check_answer(self._request, positions, response, optional_ids=self._positions_without_id)
        return response

    def add(self, positions: Sequence[int], response: ScoreResponse | CorrectResponse) -> dict[int, ErrorBody]:
        """Add a parsed answer; returns the retryable errors by position.

        Raises:
            ProtocolError: it is not consistent with the earlier answers.
        """
        self._responses.append(response)
        check_consistent(self._responses[0], response)
        results = list(zip(positions, response.items, strict=True))
        for position, item in results:
            if position in self._positions_without_id:
                item.id = None
            self._items[position] = item
        return {p: item.error for p, item in results if isinstance(item, ItemError) and item.error.retryable}

    def result(self) -> R:
        """The results of all items, in order. Raises ProtocolError if one is missing."""
        if any(item is None for item in self._items):
            raise ProtocolError("an item has no result")
        last = self._responses[-1] if self._responses else None
        digests = tuple(dict.fromkeys(r.model.digest for r in self._responses))
        if last is None:
            return self._result(self._items, None, None, digests)
        return self._result(self._items, last.model, last.options, digests)


def score_batch(
    items: Iterable[ScoreItem | dict[str, Any]], model: str, options: ScoreOptions | None
) -> Batch[ScoreResult]:
    """The batch of a call to score. Raises ProtocolError as ``as_items`` does."""
    request = ScoreRequest(model=model, items=as_items(items, ScoreItem), options=options or ScoreOptions())
    return Batch(SCORE_PATH, request, ScoreResponse, ScoreResult)


def correct_batch(
    items: Iterable[ResponseItem | dict[str, Any]], model: str, options: CorrectOptions | None
) -> Batch[CorrectResult]:
    """The batch of a call to correct. Raises ProtocolError as ``as_items`` does."""
    request = CorrectRequest(model=model, items=as_items(items, ResponseItem), options=options or CorrectOptions())
    return Batch(CORRECT_PATH, request, CorrectResponse, CorrectResult)
