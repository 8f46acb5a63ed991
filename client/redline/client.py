"""The blocking client: a thin shell around ``exchange`` and ``retry``."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from redline.errors import ConnectionFailedError, RedlineError, ServiceError
from redline.http.answer_body import MAX_ANSWER_BYTES, Answer, AnswerReader
from redline.http.answer_checks import checked_model
from redline.http.daemon_pool import DaemonThreadPool
from redline.http.deadlines import RequestDeadline, enforce_deadlines, request_deadline
from redline.http.exchange import (
    CONCURRENCY,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    ITEMS_PER_REQUEST,
    Batch,
    Ready,
    base_url,
    check_settings,
    connection_error,
    correcting,
    headers_for,
    model_path,
    new_request,
    no_cookies,
    parse,
    scoring,
    should_split,
)
from redline.http.proxies import proxy_settings, readable_proxy_errors
from redline.http.request_ids import RequestIds, surplus_connection
from redline.http.retry import NO_RETRY, Attempts, OnWait, RetryPolicy, is_retryable
from redline.http.url_redaction import without_secrets
from redline.results import CorrectResult, Result, ScoreResult
from redline.wire import (
    MODELS_PATH,
    READY_PATH,
    ItemScore,
    ModelInfo,
    ModelList,
    ResponseItem,
    ScoreItem,
    ScoreOptions,
)
from redline.wire.correction import CorrectOptions, ItemCorrection

A = TypeVar("A", bound=BaseModel)
R = TypeVar("R", bound=Result[Any])


class RewardClient:
    """Scores and corrects responses with a Redline service. Thread-safe; keeps its connections; close it.

    Args:
        url: where the service is.
        key: sent as a bearer token.
        timeout_s: of one HTTP request, from connecting to the last byte of its answer, whatever the server does.
        retry: what to do when a request fails with something that may pass; ``NO_RETRY`` turns it off.
        items_per_request: larger batches are split.
        concurrency: requests of one call under way at once.
        max_answer_bytes: of one answer, inflated; a larger one is AnswerTooLargeError.
        on_wait: called with the error and the seconds before each wait.
        transport: for tests; an ``httpx`` transport in place of the network.

    Raises:
        ProtocolError: ``url`` is no http(s) address, or the key cannot stand in a header.
        ConfigurationError: the environment names a proxy or certificates that cannot be used.
        ValueError: ``timeout_s`` or ``max_answer_bytes`` is not above 0.
    """

    def __init__(
        self,
        url: str = DEFAULT_URL,
        *,
        key: str | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        retry: RetryPolicy = RetryPolicy(),
        items_per_request: int = ITEMS_PER_REQUEST,
        concurrency: int = CONCURRENCY,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
        on_wait: OnWait = lambda error, wait_s: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        check_settings(timeout_s, max_answer_bytes)
        self.url = url.rstrip("/")
        self._timeout_s = timeout_s
        self._retry = retry
        self._max_answer_bytes = max_answer_bytes
        self._items_per_request = items_per_request
        self._concurrency = concurrency
        self._on_wait = on_wait
        self._ids = RequestIds()
        address, headers = base_url(url), headers_for(key)
        with readable_proxy_errors():
            self._http = httpx.Client(
                base_url=address,
                headers=headers,
                timeout=timeout_s,
                cookies=no_cookies(),
                transport=transport,
                **proxy_settings(address),
            )
        enforce_deadlines(self._http)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def score(
        self,
        items: Iterable[ScoreItem | dict[str, Any]],
        *,
        model: str = "default",
        options: ScoreOptions | None = None,
    ) -> ScoreResult:
        """Score items; their order is kept, and one that cannot be scored has an error in its place.

        Raises:
            ProtocolError: an item is malformed, or the other side is no Redline service.
            ServiceError: the service refused the request.
            ConnectionFailedError: it could not be reached, however often the policy let us try.
        """
        return self._ask_all(scoring(items, model, options))

    def correct(
        self,
        items: Iterable[ResponseItem | dict[str, Any]],
        *,
        model: str = "default",
        options: CorrectOptions | None = None,
    ) -> CorrectResult:
        """The model's rewrite of each item's response, once or, with ``max_rounds``, until it stays the same.

        Order is kept, and an item that cannot be rewritten has an error in its place. Raises as ``score`` does.
        """
        return self._ask_all(correcting(items, model, options))

    def _ask_all(self, batch: Batch[R]) -> R:
        call = self._attempts()
        parts = batch.parts(self._items_per_request)
        if len(parts) <= 1:
            for part in parts:
                self._ask_part(batch, part, call)
        else:
            with DaemonThreadPool(min(self._concurrency, len(parts))) as pool:
                for future in [pool.submit(self._ask_part, batch, part, call.for_part()) for part in parts]:
                    future.result()
        return batch.result()

    def _ask_part(self, batch: Batch[Any], part: Sequence[int], attempts: Attempts) -> None:
        waiting = list(part)
        while waiting:
            try:
                response = self._ask(
                    partial(batch.read, waiting),
                    "POST",
                    batch.path,
                    batch.body(waiting),
                    attempts,
                    longest_answer=batch.longest_answer(waiting),
                    is_divisible=len(waiting) > 1,
                )
            except RedlineError as error:
                if not should_split(error, len(waiting)):
                    if attempts.failed_items and is_retryable(error):
                        return  # these items were answered before: they keep their errors
                    raise
                middle = len(waiting) // 2
                for half in (waiting[:middle], waiting[middle:]):
                    if attempts.is_out_of_time:
                        if attempts.failed_items:
                            return
                        raise
                    self._ask_part(batch, half, attempts.for_half(error))
                return
            failed = batch.add(waiting, response)
            if not failed:
                return
            failure = ServiceError(next(iter(failed.values())), 200)
            wait = attempts.wait_after_items_s(failure)
            if wait is None:
                return  # the items keep their errors
            self._on_wait(failure, wait)
            time.sleep(wait)
            if attempts.is_out_of_time:
                return
            waiting = list(failed)

    def score_one(
        self, prompt: Any, response: str, *, finished: bool = True, options: ScoreOptions | None = None
    ) -> ItemScore:
        """Score one response. Raises as ``score`` does, and ItemsFailedError."""
        item = {"prompt": prompt, "response": response, "finished": finished}
        return self.score([item], options=options).scored()[0]

    def correct_one(
        self, prompt: Any, response: str, *, finished: bool = True, options: CorrectOptions | None = None
    ) -> ItemCorrection:
        """Correct one response. Raises as ``score`` does, and ItemsFailedError."""
        item = {"prompt": prompt, "response": response, "finished": finished}
        return self.correct([item], options=options).corrected()[0]

    def models(self) -> list[ModelInfo]:
        """What is served."""
        answer = self._ask(partial(parse, kind=ModelList), "GET", MODELS_PATH, None, self._attempts())
        return [checked_model(info) for info in answer.models]

    def model(self, name: str = "default") -> ModelInfo:
        """One model: limits, defaults, calibration, tokenizer fingerprint."""
        return checked_model(
            self._ask(partial(parse, kind=ModelInfo), "GET", model_path(name), None, self._attempts()), name
        )

    def wait_until_ready(self, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
        """Return once the service has a model that scores. Raises ConnectionFailedError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        read = partial(parse, kind=Ready)
        while True:
            left_s = max(0.1, deadline - time.monotonic())
            try:
                self._ask(read, "GET", READY_PATH, None, Attempts(NO_RETRY, min(self._timeout_s, left_s)))
                return
            except RedlineError as error:
                if time.monotonic() + poll_s > deadline:
                    shown = without_secrets(self.url)
                    raise ConnectionFailedError(f"{shown} was not ready within {timeout_s:g} s: {error}") from error
            time.sleep(poll_s)

    def _attempts(self) -> Attempts:
        """Of a call that begins now."""
        return Attempts(self._retry, self._timeout_s)

    def _ask(
        self,
        read: Callable[[Answer], A],
        method: str,
        path: str,
        body: Any,
        attempts: Attempts,
        *,
        longest_answer: int | None = None,
        is_divisible: bool = False,
    ) -> A:
        while True:
            try:
                return self._send(read, method, path, body, attempts.request_timeout_s, longest_answer)
            except RedlineError as error:
                if is_divisible and should_split(error):
                    raise
                wait = attempts.wait_after_request_s(error)
                failure = attempts.failure or error
                if wait is None:
                    raise failure  # noqa: B904
            self._on_wait(failure, wait)
            time.sleep(wait)
            if attempts.is_out_of_time:
                raise failure

    def _send(
        self,
        read: Callable[[Answer], A],
        method: str,
        path: str,
        body: Any,
        timeout_s: float,
        longest_answer: int | None,
    ) -> A:
        """One request, and what ``read`` makes of the whole of its answer, within ``timeout_s``."""
        try:
            request = new_request(self._http, method, path, body, timeout_s, self._ids.new())
            with request_deadline(timeout_s) as deadline:
                result = read(self._received(request, deadline, longest_answer))
                deadline.check()
                return result
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise connection_error(error, self.url, timeout_s) from error

    def _received(self, request: httpx.Request, deadline: RequestDeadline, longest_answer: int | None) -> Answer:
        """The answer to ``request``. The connection is kept if the answer ends where it should."""
        response = self._http.send(request, stream=True)
        try:
            self._ids.check(response)
            reader = AnswerReader(response, self._max_answer_bytes, longest_answer)
            if response.is_stream_consumed:
                reader.add_decoded(response.content)
            else:
                for piece in response.iter_raw():
                    reader.add(piece)
                    deadline.check()
                    if reader.is_complete and surplus_connection(response) is not None:
                        break
            answer = reader.answer()
        finally:
            response.close()
        connection = surplus_connection(response)
        if connection is not None:
            connection.close()
        return answer
