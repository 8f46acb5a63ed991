"""The blocking client: carries out the steps of ``http.call_steps``."""

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
    correcting,
    new_request,
    scoring,
)
from redline.http.proxies import readable_proxy_errors
from redline.http.request_ids import surplus_connection
from redline.http.retry import OnWait, RetryPolicy
from redline.results import CorrectResult, Result, ScoreResult
from redline.wire import CorrectOptions, ItemCorrection, ItemScore, ModelInfo, ResponseItem, ScoreItem, ScoreOptions

R = TypeVar("R", bound=Result[Any])
T = TypeVar("T")


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
        """Score items; their order is kept, and one that cannot be scored has an error in its place.

        Raises:
            ProtocolError: an item is malformed, or the other side is no Redline service.
            ServiceError: the service refused the request.
            ConnectionFailedError: it could not be reached, however often the policy let us try.
        """
        return self._run_batch(scoring(items, model, options))

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
        return self._run_batch(correcting(items, model, options))

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
        return self._run(self._steps.models())

    def model(self, name: str = "default") -> ModelInfo:
        """One model: limits, defaults, calibration, tokenizer fingerprint."""
        return self._run(self._steps.model(name))

    def wait_until_ready(self, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
        """Return once the service has a model that scores. Raises ConnectionFailedError after ``timeout_s``."""
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
        """Carry out ``steps`` one after the other."""
        try:
            step = next(steps)
            while True:
                if isinstance(step, Pause):
                    time.sleep(step.seconds)
                    step = next(steps)
                    continue
                try:
                    answered = self._send(step.request, step.timeout_s)
                except RedlineError as error:
                    step = steps.throw(error)
                else:
                    step = steps.send(answered)
        except StopIteration as done:
            result: T = done.value
            return result

    def _send(self, request: Request, timeout_s: float) -> Any:
        """One request, and what its ``read`` makes of the whole of its answer, within ``timeout_s``."""
        try:
            http_request = new_request(
                self._http, request.method, request.path, request.body, timeout_s, self._steps.request_ids.new()
            )
            with request_deadline(timeout_s) as deadline:
                result = request.read(self._received(http_request, deadline, request.longest_answer))
                deadline.check()
                return result
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise connection_error(error, self.url, timeout_s) from error

    def _received(self, request: httpx.Request, deadline: RequestDeadline, longest_answer: int | None) -> Answer:
        """The answer to ``request``. The connection is kept if the answer ends where it should."""
        response = self._http.send(request, stream=True)
        try:
            self._steps.request_ids.check(response)
            reader = AnswerReader(response, self._steps.max_answer_bytes, longest_answer)
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
