"""The blocking client: a thin shell around ``exchange`` and ``retry``."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
from pydantic import BaseModel

from redline.background import DaemonPool
from redline.errors import ConnectionFailedError, RedlineError, ServiceError
from redline.exchange import (
    CONCURRENCY,
    DEFAULT_TIMEOUT_S,
    DEFAULT_URL,
    ITEMS_PER_REQUEST,
    Gathered,
    as_items,
    chunks,
    connection_error,
    headers_for,
    is_too_much_at_once,
    parse,
    score_body,
)
from redline.results import ScoreResult
from redline.retry import NO_RETRY, OnWait, RetryPolicy
from redline.wire import (
    MODELS_PATH,
    READY_PATH,
    SCORE_PATH,
    ItemScore,
    ModelInfo,
    ModelList,
    ScoreItem,
    ScoreOptions,
    ScoreResponse,
)

A = TypeVar("A", bound=BaseModel)


class _Ready(BaseModel):
    status: str


class RewardClient:
    """Scores responses with a Redline service. Thread-safe; keeps its connections; close it or use ``with``.

    Args:
        url: where the service is.
        key: sent as a bearer token.
        timeout_s: of one HTTP request.
        retry: what to do when a request fails with something that may pass; ``NO_RETRY`` turns it off.
        items_per_request: larger batches are split.
        concurrency: requests of one call under way at once.
        on_wait: called with the error and the seconds before each wait.
        transport: for tests; an ``httpx`` transport in place of the network.
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
        on_wait: OnWait = lambda error, wait_s: None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self._retry = retry
        self._items_per_request = items_per_request
        self._concurrency = concurrency
        self._on_wait = on_wait
        try:
            self._http = httpx.Client(
                base_url=self.url, headers=headers_for(key, timeout_s), timeout=timeout_s, transport=transport
            )
        except httpx.InvalidURL as error:
            raise connection_error(error, url) from error

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
        checked = as_items(items)
        gathered = Gathered(checked)
        chosen = options or ScoreOptions()
        parts = [list(part) for part in chunks(len(checked), self._items_per_request)]
        if len(parts) <= 1:
            for part in parts:
                self._score_part(gathered, part, model, chosen)
        else:
            with DaemonPool(min(self._concurrency, len(parts))) as pool:
                for future in [pool.submit(self._score_part, gathered, part, model, chosen) for part in parts]:
                    future.result()
        return gathered.result()

    def _score_part(self, gathered: Gathered, part: Sequence[int], model: str, options: ScoreOptions) -> None:
        waiting = list(part)
        policy = self._retry.for_items()
        started = time.monotonic()
        attempt = 0
        while waiting:
            attempt += 1
            body = score_body(model, [gathered.items[i] for i in waiting], options)
            try:
                response = self._ask(ScoreResponse, "POST", SCORE_PATH, body, is_divisible=len(waiting) > 1)
            except ServiceError as error:
                if not is_too_much_at_once(error, len(waiting)):
                    raise
                middle = len(waiting) // 2
                self._score_part(gathered, waiting[:middle], model, options)
                self._score_part(gathered, waiting[middle:], model, options)
                return
            failed = gathered.add(waiting, response)
            if not failed:
                return
            body_error = response.items[waiting.index(failed[0])]
            assert not isinstance(body_error, ItemScore)
            failure = ServiceError(body_error.error, 200)
            wait = policy.wait_s(failure, attempt, time.monotonic() - started)
            if wait is None:
                return  # the items keep their errors
            self._on_wait(failure, wait)
            time.sleep(wait)
            waiting = failed

    def score_one(
        self, prompt: Any, response: str, *, finished: bool = True, options: ScoreOptions | None = None
    ) -> ItemScore:
        """Score one response. Raises as ``score`` does, and ItemsFailedError."""
        item = {"prompt": prompt, "response": response, "finished": finished}
        return self.score([item], options=options).scored()[0]

    def models(self) -> list[ModelInfo]:
        """What is served."""
        return self._ask(ModelList, "GET", MODELS_PATH).models

    def model(self, name: str = "default") -> ModelInfo:
        """One model: limits, defaults, calibration, tokenizer fingerprint."""
        return self._ask(ModelInfo, "GET", f"{MODELS_PATH}/{name}")

    def wait_until_ready(self, timeout_s: float = 120.0, poll_s: float = 0.2) -> None:
        """Return once the service has a model that scores. Raises ConnectionFailedError after ``timeout_s``."""
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                self._ask(_Ready, "GET", READY_PATH, retry=NO_RETRY)
                return
            except RedlineError as error:
                if time.monotonic() + poll_s > deadline:
                    raise ConnectionFailedError(f"{self.url} was not ready within {timeout_s:g} s: {error}") from error
            time.sleep(poll_s)

    def _ask(
        self,
        answer: type[A],
        method: str,
        path: str,
        body: Any = None,
        *,
        retry: RetryPolicy | None = None,
        is_divisible: bool = False,
    ) -> A:
        policy = retry or self._retry
        started = time.monotonic()
        attempt = 0
        while True:
            attempt += 1
            failure: RedlineError
            try:
                return parse(self._http.request(method, path, json=body), answer)
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                failure = connection_error(error, self.url)
                failure.__cause__ = error
            except RedlineError as error:
                failure = error
            if is_divisible and is_too_much_at_once(failure):
                raise failure
            wait = policy.wait_s(failure, attempt, time.monotonic() - started)
            if wait is None:
                raise failure
            self._on_wait(failure, wait)
            time.sleep(wait)
