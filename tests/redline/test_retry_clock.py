"""One clock and one count for all tries of a call, however it is split, retried and halved; both clients."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import httpx
import pytest

from redline import ConnectionFailedError, RedlineError, RetryPolicy, ScoreItem, ServiceError
from redline.http.retry import Attempts
from redline.testing import FakeService
from redline.wire import DEADLINE_HEADER, ERROR_TABLE, ErrorBody, ErrorCode, ErrorResponse
from tests.redline.raw_server import RawServer, call, http, receive_request

# What a busy machine may add to a moment; what was wrong went on for three times ``max_elapsed_s`` and more.
SLACK_S = 0.35
NO_ANSWER = ConnectionFailedError("nobody there")


def items(count: int) -> list[ScoreItem]:
    return [ScoreItem(id=str(n), prompt="p", response="x" * n) for n in range(1, count + 1)]


def refusal(code: ErrorCode) -> httpx.Response:
    body = ErrorResponse(error=ErrorBody.of(code, f"it is {code.value}"))
    return httpx.Response(ERROR_TABLE[code].status, json=body.model_dump())


class Scripted:
    """A fake service that takes ``delay_s`` for each request, and answers by ``decide``, if that returns anything.

    ``begun``: seconds from the first request at which each began. ``deadlines``: what each announced.
    """

    def __init__(self, decide: Callable[[int, list[Any]], httpx.Response | None], delay_s: float = 0.0) -> None:
        self.fake = FakeService(lambda word: float(len(word)))
        self.begun: list[float] = []
        self.deadlines: list[float] = []
        self.sizes: list[int] = []
        self._decide = decide
        self._delay_s = delay_s
        self._started = 0.0
        self._lock = threading.Lock()

    def _note(self, request: httpx.Request) -> tuple[int, list[Any]]:
        with self._lock:
            now = time.monotonic()
            self._started = self._started or now
            self.begun.append(now - self._started)
            self.deadlines.append(float(request.headers[DEADLINE_HEADER]))
            items = json.loads(request.content)["items"]
            self.sizes.append(len(items))
            return len(self.sizes), items

    def _answer(self, request: httpx.Request, number: int, items: list[Any]) -> httpx.Response:
        decided = self._decide(number, items)
        return decided or self.fake.transport.handler(request)  # type: ignore[return-value]

    def transport(self, is_async: bool) -> httpx.MockTransport:
        def answer(request: httpx.Request) -> httpx.Response:
            noted = self._note(request)
            time.sleep(self._delay_s)
            return self._answer(request, *noted)

        async def answer_async(request: httpx.Request) -> httpx.Response:
            noted = self._note(request)
            await asyncio.sleep(self._delay_s)
            return self._answer(request, *noted)

        return httpx.MockTransport(answer_async if is_async else answer)

    def score(self, is_async: bool, count: int, retry: RetryPolicy, **settings: Any) -> Any:
        settings = {"transport": self.transport(is_async), "retry": retry, **settings}
        return call(is_async, lambda client: client.score(items(count)), **settings)


def item_errors(items: list[Any]) -> httpx.Response:
    """Out of memory for every item."""
    error = ErrorBody.of(ErrorCode.OUT_OF_MEMORY, "no").model_dump()
    body = {
        "model": {"name": "default", "digest": "sha256:fake", "kind": "seq2seq"},
        "options": {"aggregate": "sum", "calibrated": False},
        "items": [{"id": item["id"], "error": error} for item in items],
        "usage": {"scored_tokens": 0, "batch_tokens": 0},
    }
    return httpx.Response(200, json=body)


@pytest.fixture(params=[False, True], ids=["blocking", "asyncio"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


def patient(max_elapsed_s: float | None, tries: int | None = None, wait_s: float = 0.02) -> RetryPolicy:
    return RetryPolicy(
        max_attempts=tries, max_elapsed_s=max_elapsed_s, first_wait_s=wait_s, longest_wait_s=wait_s, has_jitter=False
    )


# --- time ---------------------------------------------------------------------------------------------------


def test_halves_do_not_restart_the_clock(is_async: bool) -> None:
    service = Scripted(lambda number, items: refusal(ErrorCode.TIMED_OUT), delay_s=0.15)
    with pytest.raises(ServiceError, match="timed_out"):
        service.score(is_async, 64, patient(0.4))
    assert service.sizes[:3] == [64, 32, 16]
    assert max(service.begun) <= 0.4 + SLACK_S  # six halvings alone take 0.9 s


def test_the_second_half_gets_no_extra_time(is_async: bool) -> None:
    def decide(number: int, items: list[Any]) -> httpx.Response | None:
        # most of the time is used up by the first half
        return None if number >= 5 and items[0]["id"] == "1" else refusal(ErrorCode.TIMED_OUT)

    service = Scripted(decide, delay_s=0.1)
    with pytest.raises(ServiceError, match="timed_out"):
        service.score(is_async, 2, patient(0.5))
    assert max(service.begun) <= 0.5 + SLACK_S


def test_retries_of_items_and_of_requests_share_the_clock(is_async: bool) -> None:
    def decide(number: int, items: list[Any]) -> httpx.Response:
        # each time that items are sent again, the service is away for a while
        return item_errors(items) if number % 7 == 0 else refusal(ErrorCode.OVERLOADED)

    service = Scripted(decide, delay_s=0.08)
    with suppress(ServiceError):  # on a busy machine the time is over before an item was answered
        result = service.score(is_async, 4, patient(0.8))
        assert [error.code for _, error in result.failures] == ["out_of_memory"] * 4
    assert max(service.begun) <= 0.8 + SLACK_S


def test_items_keep_their_errors_when_the_time_is_over(is_async: bool) -> None:
    service = Scripted(lambda number, items: item_errors(items), delay_s=0.15)
    result = service.score(is_async, 3, patient(0.4))
    assert [error.code for _, error in result.failures] == ["out_of_memory"] * 3
    assert max(service.begun) <= 0.4 + SLACK_S
    assert len(service.sizes) <= 3


def test_concurrent_parts_share_the_clock(is_async: bool) -> None:
    service = Scripted(lambda number, items: refusal(ErrorCode.OVERLOADED), delay_s=0.05)
    with pytest.raises(ServiceError, match="overloaded"):
        service.score(is_async, 6, patient(0.3), items_per_request=1, concurrency=3)
    time.sleep(0.3)  # the blocking client's other threads may still be at it
    assert max(service.begun) <= 0.3 + SLACK_S


def test_a_repeated_request_gets_the_remaining_time(is_async: bool) -> None:
    service = Scripted(lambda number, items: refusal(ErrorCode.OVERLOADED), delay_s=0.1)
    with pytest.raises(ServiceError):
        service.score(is_async, 1, patient(0.5), timeout_s=60.0)
    first, *rest = service.deadlines
    assert first == 60.0  # the first is not shortened
    assert rest == sorted(rest, reverse=True)
    assert all(0 < deadline <= 0.5 - begun + 0.3 for deadline, begun in zip(rest, service.begun[1:], strict=True))


def test_a_repeated_request_that_hangs_ends_in_time(is_async: bool) -> None:
    def refuse_then_hang(server: RawServer, connection: socket.socket) -> None:
        receive_request(connection)
        answer = refusal(ErrorCode.OVERLOADED)
        connection.sendall(http(answer.content, status="503 Busy"))
        receive_request(connection)
        server.wait_s(5.0)

    with RawServer(lambda connection: refuse_then_hang(server, connection)) as server:
        started = time.monotonic()
        # the refusal says more than that the last request was cut short
        with pytest.raises(ServiceError, match="overloaded"):
            call(is_async, lambda client: client.score(items(1)), url=server.url, retry=patient(0.4))
        assert time.monotonic() - started <= 0.4 + 4 * SLACK_S


def test_a_call_without_retries_may_take_longer_than_max_elapsed_s(is_async: bool) -> None:
    service = Scripted(lambda number, items: None, delay_s=0.05)
    result = service.score(is_async, 6, patient(0.1), items_per_request=1, concurrency=1)
    assert [item.score for item in result.scored()] == [float(n) for n in range(1, 7)]
    assert set(service.deadlines) == {100.0}


# --- number -------------------------------------------------------------------------------------------------


def test_halves_have_the_attempts_that_the_request_had_left(is_async: bool) -> None:
    script = [ErrorCode.OVERLOADED, ErrorCode.OVERLOADED, ErrorCode.TIMED_OUT]

    def decide(number: int, items: list[Any]) -> httpx.Response:
        return refusal(script[number - 1] if number <= len(script) else ErrorCode.OVERLOADED)

    service = Scripted(decide)
    with pytest.raises(ServiceError, match="overloaded"):
        service.score(is_async, 8, patient(None, tries=4, wait_s=0.0))
    assert service.sizes == [8, 8, 8, 4, 4]  # two failures and one halving, then the two tries that were left


def test_retries_of_items_and_of_requests_share_the_count(is_async: bool) -> None:
    def decide(number: int, items: list[Any]) -> httpx.Response:
        return item_errors(items) if number % 2 else refusal(ErrorCode.OVERLOADED)

    service = Scripted(decide)
    result = service.score(is_async, 2, patient(None, tries=5, wait_s=0.0))
    assert len(service.sizes) == 5
    assert [error.code for _, error in result.failures] == ["out_of_memory"] * 2


# --- the pure half ------------------------------------------------------------------------------------------


def begun(seconds_ago: float, policy: RetryPolicy, timeout_s: float = 100.0) -> Attempts:
    return Attempts(policy, timeout_s, started_s=time.monotonic() - seconds_ago)


def test_request_timeouts_by_attempt() -> None:
    attempts = begun(170.0, RetryPolicy(max_elapsed_s=180.0))
    assert attempts.request_timeout_s == 100.0
    assert attempts.wait_after_request_s(NO_ANSWER) is not None
    assert attempts.request_timeout_s == pytest.approx(10.0, abs=0.5)
    assert attempts.for_half(NO_ANSWER).request_timeout_s == pytest.approx(10.0, abs=0.5)
    assert attempts.for_part().request_timeout_s == 100.0
    assert (
        begun(1.0, RetryPolicy(max_elapsed_s=180.0)).for_half(NO_ANSWER).request_timeout_s == 100.0
    )  # no more than timeout_s
    assert begun(1e6, RetryPolicy(max_elapsed_s=None)).for_half(NO_ANSWER).request_timeout_s == 100.0


def test_no_attempt_begins_when_the_time_is_over() -> None:
    attempts = begun(181.0, RetryPolicy(max_elapsed_s=180.0))
    assert attempts.is_out_of_time
    assert attempts.for_half(NO_ANSWER).is_out_of_time and attempts.for_part().is_out_of_time
    assert attempts.wait_after_request_s(NO_ANSWER) is None
    assert begun(181.0, RetryPolicy(max_elapsed_s=180.0)).wait_after_items_s(item_failure()) is None
    assert not begun(1e6, RetryPolicy(max_elapsed_s=None)).is_out_of_time


def test_parts_count_attempts_separately_and_halves_share_them() -> None:
    attempts = begun(0.0, RetryPolicy(max_attempts=3))
    assert attempts.wait_after_request_s(NO_ANSWER) is not None
    half = attempts.for_half(NO_ANSWER)
    assert half.wait_after_items_s(item_failure()) is not None
    assert half.wait_after_request_s(NO_ANSWER) is None
    assert attempts.wait_after_request_s(NO_ANSWER) is not None  # the other half is not charged
    part = attempts.for_part()
    assert [part.wait_after_request_s(NO_ANSWER) is None for _ in range(3)] == [False, False, True]


def test_an_outage_does_not_use_up_the_attempts_of_items() -> None:
    attempts = begun(0.0, RetryPolicy(max_attempts=None))
    for _ in range(50):
        assert attempts.wait_after_request_s(NO_ANSWER) is not None
    assert [attempts.wait_after_items_s(item_failure()) is None for _ in range(5)] == [False] * 4 + [True]


def item_failure() -> RedlineError:
    return ServiceError(ErrorBody.of(ErrorCode.OUT_OF_MEMORY, "no"), 200)
