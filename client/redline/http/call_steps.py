"""The steps of a call, decided here for both clients, which only carry them out: one blocking, one on asyncio.

A generator of steps yields a ``Send``, and gets back what the request's ``read`` returned, or has the RedlineError
thrown in that the request failed with; or it yields a ``Pause``. What it returns is the call's result.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

from redline.errors import ConnectionFailedError, RedlineError, ServiceError
from redline.http.answer_body import Answer
from redline.http.answer_checks import checked_model
from redline.http.exchange import (
    Batch,
    Ready,
    base_url,
    check_settings,
    headers_for,
    model_path,
    no_cookies,
    parse,
    should_split,
)
from redline.http.proxies import proxy_settings
from redline.http.request_ids import RequestIds
from redline.http.retry import NO_RETRY, Attempts, OnWait, RetryPolicy, is_retryable
from redline.http.url_redaction import without_secrets
from redline.wire import MODELS_PATH, READY_PATH, ModelInfo, ModelList

T = TypeVar("T")


class Request(NamedTuple):
    """One HTTP request; ``read`` is called with the whole of its answer.

    ``longest_answer``: bytes that no answer to it exceeds; None if that is not known.
    """

    read: Callable[[Answer], Any]
    method: str
    path: str
    body: Any = None
    longest_answer: int | None = None


class Send(NamedTuple):
    """Make ``request`` and read its answer, both within ``timeout_s``."""

    request: Request
    timeout_s: float


class Pause(NamedTuple):
    """Wait for so many seconds."""

    seconds: float


Steps = Generator[Send | Pause, Any, T]


class CallSteps:
    """The settings that both clients have, and the steps of each of their calls; see ``RewardClient``."""

    def __init__(
        self,
        url: str,
        *,
        key: str | None,
        timeout_s: float,
        retry: RetryPolicy,
        items_per_request: int,
        concurrency: int,
        max_answer_bytes: int,
        on_wait: OnWait,
    ) -> None:
        check_settings(timeout_s, max_answer_bytes)
        self.url = url.rstrip("/")
        self.concurrency = concurrency
        self.items_per_request = items_per_request
        self.max_answer_bytes = max_answer_bytes
        self.request_ids = RequestIds()
        self._address = base_url(url)
        self._headers = headers_for(key)
        self._timeout_s = timeout_s
        self._retry = retry
        self._on_wait = on_wait

    def http_options(self) -> dict[str, Any]:
        """Arguments of ``httpx.Client`` and ``httpx.AsyncClient``. Raises ConfigurationError for unusable proxies."""
        return {
            "base_url": self._address,
            "headers": self._headers,
            "timeout": self._timeout_s,
            "cookies": no_cookies(),
            **proxy_settings(self._address),
        }

    def parts(self, batch: Batch[Any]) -> list[Steps[None]]:
        """The steps of each part of ``batch``; parts may be carried out at the same time, and share one clock."""
        call = Attempts(self._retry, self._timeout_s)
        return [self._part(batch, part, call.for_part()) for part in batch.parts(self.items_per_request)]

    def models(self) -> Steps[list[ModelInfo]]:
        """What is served."""
        answer = yield from self._repeated(Request(partial(parse, kind=ModelList), "GET", MODELS_PATH))
        return [checked_model(info) for info in answer.models]

    def model(self, name: str) -> Steps[ModelInfo]:
        """One model."""
        answer = yield from self._repeated(Request(partial(parse, kind=ModelInfo), "GET", model_path(name)))
        return checked_model(answer, name)

    def ready(self, timeout_s: float, poll_s: float) -> Steps[None]:
        """Ask every ``poll_s`` until the service is ready; ConnectionFailedError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        request = Request(partial(parse, kind=Ready), "GET", READY_PATH)
        while True:
            left_s = max(0.1, deadline - time.monotonic())
            try:
                yield from self._repeated(request, Attempts(NO_RETRY, min(self._timeout_s, left_s)))
                return
            except RedlineError as error:
                if time.monotonic() + poll_s > deadline:
                    shown = without_secrets(self.url)
                    raise ConnectionFailedError(f"{shown} was not ready within {timeout_s:g} s: {error}") from error
            yield Pause(poll_s)

    def _repeated(
        self, request: Request, attempts: Attempts | None = None, *, is_divisible: bool = False
    ) -> Steps[Any]:
        """``request``, made again after a failure as ``attempts`` allows; by default those of a new call.

        Args:
            is_divisible: a request that the service had no time for is not made again: halves of it are.
        """
        attempts = attempts or Attempts(self._retry, self._timeout_s)
        while True:
            try:
                return (yield Send(request, attempts.request_timeout_s))
            except RedlineError as error:
                if is_divisible and should_split(error):
                    raise
                wait_s = attempts.wait_after_request_s(error)
                failure = attempts.failure or error
                if wait_s is None:
                    raise failure  # noqa: B904
            self._on_wait(failure, wait_s)
            yield Pause(wait_s)
            if attempts.is_out_of_time:
                raise failure

    def _part(self, batch: Batch[Any], part: Sequence[int], attempts: Attempts) -> Steps[None]:
        """Ask about the items at ``part``, in halves if need be, and again about those whose errors are retryable."""
        unanswered = list(part)
        while unanswered:
            request = Request(
                partial(batch.read, unanswered),
                "POST",
                batch.path,
                batch.body(unanswered),
                batch.longest_answer(unanswered),
            )
            try:
                response = yield from self._repeated(request, attempts, is_divisible=len(unanswered) > 1)
            except RedlineError as error:
                if not should_split(error, len(unanswered)):
                    if attempts.failed_items and is_retryable(error):
                        return  # these items were answered before: they keep their errors
                    raise
                middle = len(unanswered) // 2
                for half in (unanswered[:middle], unanswered[middle:]):
                    if attempts.is_out_of_time:
                        if attempts.failed_items:
                            return
                        raise
                    yield from self._part(batch, half, attempts.for_half(error))
                return
            failed = batch.add(unanswered, response)
            if not failed:
                return
            failure = ServiceError(next(iter(failed.values())), 200)
            wait_s = attempts.wait_after_items_s(failure)
            if wait_s is None:
                return  # the items keep their errors
            self._on_wait(failure, wait_s)
            yield Pause(wait_s)
            if attempts.is_out_of_time:
                return
            unanswered = list(failed)
