"""The requests, retries and waits of each call, as generators that the blocking and the asyncio client execute.

A generator yields a ``Send`` and receives the result of the request's ``read`` (or a RedlineError is thrown into it),
or it yields a ``Pause``. Its return value is the result of the call.
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
    empty_cookie_jar,
    headers_for,
    model_path,
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
    """One HTTP request; ``read`` is called with its complete answer.

    ``largest_answer_bytes``: maximum bytes of an answer to it; None if unknown.
    """

    read: Callable[[Answer], Any]
    method: str
    path: str
    body: Any = None
    largest_answer_bytes: int | None = None


class Send(NamedTuple):
    """Send ``request`` and read its answer within ``timeout_s``."""

    request: Request
    timeout_s: float


class Pause(NamedTuple):
    """Wait for ``seconds``."""

    seconds: float


Steps = Generator[Send | Pause, Any, T]


class CallSteps:
    """The settings of both clients and the steps of their calls; see ``RewardClient``."""

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
            "cookies": empty_cookie_jar(),
            **proxy_settings(self._address),
        }

    def parts(self, batch: Batch[Any]) -> list[Steps[None]]:
        """The steps of each part of ``batch``. Parts may run concurrently and share one time limit."""
        call = Attempts(self._retry, self._timeout_s)
        return [self._part(batch, part, call.for_part()) for part in batch.parts(self.items_per_request)]

    def models(self) -> Steps[list[ModelInfo]]:
        """All served models."""
        answer = yield from self._with_retries(Request(partial(parse, kind=ModelList), "GET", MODELS_PATH))
        return [checked_model(info) for info in answer.models]

    def model(self, name: str) -> Steps[ModelInfo]:
        """One model."""
        answer = yield from self._with_retries(Request(partial(parse, kind=ModelInfo), "GET", model_path(name)))
        return checked_model(answer, name)

    def ready(self, timeout_s: float, poll_s: float) -> Steps[None]:
        """Poll every ``poll_s`` seconds until the service is ready; ConnectionFailedError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        request = Request(partial(parse, kind=Ready), "GET", READY_PATH)
        while True:
            remaining_s = max(0.1, deadline - time.monotonic())
            try:
                yield from self._with_retries(request, Attempts(NO_RETRY, min(self._timeout_s, remaining_s)))
                return
            except RedlineError as error:
                if time.monotonic() + poll_s > deadline:
                    address = without_secrets(self.url)
                    raise ConnectionFailedError(f"{address} was not ready within {timeout_s:g} s: {error}") from error
            yield Pause(poll_s)

    def _with_retries(
        self, request: Request, attempts: Attempts | None = None, *, can_split: bool = False
    ) -> Steps[Any]:
        """Send ``request``, repeated after failures as ``attempts`` allows; by default as for a new call.

        Args:
            can_split: raise the error of a request that timed out in the service, so that the caller can split it.
        """
        attempts = attempts or Attempts(self._retry, self._timeout_s)
        while True:
            try:
                return (yield Send(request, attempts.request_timeout_s))
            except RedlineError as error:
                if can_split and should_split(error):
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
        """Request the items at ``part``, in halves if necessary; items with retryable errors are requested again."""
        pending = list(part)
        while pending:
            request = Request(
                partial(batch.read, pending),
                "POST",
                batch.path,
                batch.body(pending),
                batch.largest_answer_bytes(pending),
            )
            try:
                response = yield from self._with_retries(request, attempts, can_split=len(pending) > 1)
            except RedlineError as error:
                if not should_split(error, len(pending)):
                    if attempts.failed_items and is_retryable(error):
                        return  # an earlier request succeeded: the items keep their errors
                    raise
                middle = len(pending) // 2
                for half in (pending[:middle], pending[middle:]):
                    if attempts.is_out_of_time:
                        if attempts.failed_items:
                            return
                        raise
                    yield from self._part(batch, half, attempts.for_half(error))
                return
            failed = batch.add(pending, response)
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
            pending = list(failed)
