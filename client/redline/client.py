"""The blocking client. ``http.call_steps`` decides what is sent; this module sends it."""

from __future__ import annotations

import time
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx

from redline.errors import RedlineError
from redline.http.answer_body import MAX_ANSWER_BYTES, Answer, AnswerReader
from redline.http.call_steps import CallSteps, Pause, Request, Steps
from redline.http.daemon_pool import DaemonThreadPool
from redline.http.deadlines import RequestDeadline, enforce_deadlines, request_deadline
from redline.http.exchange import (
    CONCURRENCY,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    ITEMS_PER_REQUEST,
    Batch,
    connection_error,
    correct_batch,
    new_request,
    score_batch,
)
from redline.http.proxies import readable_proxy_errors
from redline.http.request_ids import connection_with_surplus
from redline.http.retry import OnWait, RetryPolicy
from redline.results import CorrectResult, Result, ScoreResult
from redline.wire import CorrectOptions, ItemCorrection, ItemScore, ModelInfo, ResponseItem, ScoreItem, ScoreOptions

R = TypeVar("R", bound=Result[Any])
T = TypeVar("T")


class RewardClient:
    """Scores and corrects responses with a Redline service. Thread-safe. Close it or use ``with``.

    Args:
        url: address of the service.
        key: sent as a bearer token.
        timeout_s: total time of one HTTP request, from connecting to the last byte of the answer.
        retry: when to repeat a failed request; ``NO_RETRY`` turns retries off.
        items_per_request: larger calls are split into several requests.
        concurrency: maximum number of concurrent requests per call.
        max_answer_bytes: maximum size of an answer, decompressed; a larger one raises AnswerTooLargeError.
        on_wait: called before each wait with the error and the seconds to wait.
        transport: for tests; an ``httpx`` transport that replaces the network.

    Raises:
        ProtocolError: ``url`` is not an http(s) address, or the key cannot be sent in a header.
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
        self._steps = CallSteps(
            url,
            key=key,
            timeout_s=timeout_s,
            retry=retry,
            items_per_request=items_per_request,
            concurrency=concurrency,
            max_answer_bytes=max_answer_bytes,
            on_wait=on_wait,
        )
        self.url = self._steps.url
        with readable_proxy_errors():
            self._http = httpx.Client(transport=transport, **self._steps.http_options())
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
        """Score items, in order; an item that cannot be scored has an ItemError as its result.

        Raises:
            ProtocolError: an item is invalid, or the server is not a Redline service.
            ServiceError: the service refused the request.
            ConnectionFailedError: the service could not be reached within the retry policy.
        """
        return self._run_batch(score_batch(items, model, options))

    def correct(
        self,
        items: Iterable[ResponseItem | dict[str, Any]],
        *,
        model: str = "default",
        options: CorrectOptions | None = None,
    ) -> CorrectResult:
        """The model's rewrite of each item's response, once or, with ``max_rounds``, until it stays the same.

        Results are in order; an item that cannot be rewritten has an ItemError. Raises as ``score`` does.
        """
        return self._run_batch(correct_batch(items, model, options))

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
        """All served models."""
        return self._run(self._steps.models())

    def model(self, name: str = "default") -> ModelInfo:
        """One model: limits, defaults, calibration, tokenizer fingerprint."""
        return self._run(self._steps.model(name))

    def wait_until_ready(self, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
        """Wait until the service is ready to score. Raises ConnectionFailedError after ``timeout_s``."""
        self._run(self._steps.ready(timeout_s, poll_s))

    def _run_batch(self, batch: Batch[R]) -> R:
        parts = self._steps.parts(batch)
        if len(parts) <= 1:
            for steps in parts:
                self._run(steps)
        else:
            with DaemonThreadPool(min(self._steps.concurrency, len(parts))) as pool:
                for future in [pool.submit(self._run, steps) for steps in parts]:
                    future.result()
        return batch.result()

    def _run(self, steps: Steps[T]) -> T:
        """Carry out ``steps`` one after another."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(steps)
                    continue
                try:
                    answer = self._send(step.request, step.timeout_s)
                except RedlineError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answer)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, request: Request, timeout_s: float) -> Any:
        """Send one request and return the result of its ``read``, within ``timeout_s``."""
        try:
            http_request = new_request(
                self._http, request.method, request.path, request.body, timeout_s, self._steps.request_ids.new()
            )
            with request_deadline(timeout_s) as deadline:
                result = request.read(self._receive(http_request, deadline, request.largest_answer_bytes))
                deadline.check()
                return result
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise connection_error(error, self.url, timeout_s) from error

    def _receive(self, request: httpx.Request, deadline: RequestDeadline, largest_answer_bytes: int | None) -> Answer:
        """Send ``request`` and read the answer. The connection is kept if nothing follows the answer."""
        response = self._http.send(request, stream=True)
        try:
            self._steps.request_ids.check(response)
            reader = AnswerReader(response, self._steps.max_answer_bytes, largest_answer_bytes)
            if response.is_stream_consumed:
                reader.add_decoded(response.content)
            else:
                for piece in response.iter_raw():
                    reader.add(piece)
                    deadline.check()
                    if reader.is_complete and connection_with_surplus(response) is not None:
                        break
            answer = reader.answer()
        finally:
            response.close()
        connection = connection_with_surplus(response)
        if connection is not None:
            connection.close()
        return answer
