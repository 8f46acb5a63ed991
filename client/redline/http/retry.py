"""The retry policy of both clients: when to repeat a request, how long to wait, and the time limits."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from redline.errors import AnswerMismatchError, ConnectionFailedError, RedlineError, ServiceError
from redline.wire import ErrorCode

_ITEM_ATTEMPTS = 5
OnWait = Callable[[RedlineError, float], None]
_UNSET: Any = object()
_RENAMED = "RetryPolicy: patience_s is named max_elapsed_s; the old name is removed in 0.2"


@dataclass(frozen=True, init=False)
class RetryPolicy:
    """Exponential backoff with jitter and a maximum wait; Retry-After is honoured.

    ``max_attempts``: maximum number of attempts; None for no limit. ``max_elapsed_s``: seconds from the start of the
    call (``score``, ``correct``, ``model``, ...) after which no attempt begins and every wait and repeated request
    ends; None for no limit. All requests of a call share this time; a call that needs no second attempt is not limited
    by it. ``first_wait_s``, ``longest_wait_s``: the range of waits; a longer Retry-After is cut to ``longest_wait_s``.
    ``has_jitter`` False makes waits deterministic.

    ``patience_s`` is the name of ``max_elapsed_s`` in 0.1; it is accepted with a DeprecationWarning until 0.2.
    """

    max_attempts: int | None = 5
    max_elapsed_s: float | None = 180.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    has_jitter: bool = True

    def __init__(
        self,
        max_attempts: int | None = max_attempts,
        max_elapsed_s: float | None = max_elapsed_s,
        first_wait_s: float = first_wait_s,
        longest_wait_s: float = longest_wait_s,
        has_jitter: bool = has_jitter,
        *,
        patience_s: float | None = _UNSET,
    ) -> None:
        if patience_s is not _UNSET:
            warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
            max_elapsed_s = patience_s
        values = (max_attempts, max_elapsed_s, first_wait_s, longest_wait_s, has_jitter)
        for own_field, value in zip(fields(self), values, strict=True):
            object.__setattr__(self, own_field.name, value)

    @property
    def patience_s(self) -> float | None:
        """``max_elapsed_s``, with a DeprecationWarning."""
        warnings.warn(_RENAMED, DeprecationWarning, stacklevel=2)
        return self.max_elapsed_s

    def for_items(self) -> RetryPolicy:
        """The policy for items that failed in a reachable service: at most a few attempts."""
        return replace(self, max_attempts=min(self.max_attempts or _ITEM_ATTEMPTS, _ITEM_ATTEMPTS))

    def wait_s(self, error: RedlineError, attempt: int, elapsed_s: float) -> float | None:
        """Seconds to wait after attempt number ``attempt`` (from 1) failed with ``error``; None to stop."""
        if not is_retryable(error) or (self.max_attempts is not None and attempt >= self.max_attempts):
            return None
        if isinstance(error, ServiceError) and error.code == ErrorCode.INTERNAL and attempt >= _ITEM_ATTEMPTS:
            return None  # a repeated internal error is a bug, not an outage that will end
        wait = min(self.longest_wait_s, self.first_wait_s * 2.0 ** min(attempt - 1, 30))
        if self.has_jitter:
            wait *= random.uniform(0.5, 1.0)
        if isinstance(error, ServiceError) and error.retry_after_s is not None:
            wait = max(wait, min(error.retry_after_s, self.longest_wait_s))
        if self.max_elapsed_s is not None and elapsed_s + wait > self.max_elapsed_s:
            return None
        return wait


NO_RETRY = RetryPolicy(max_attempts=1)


@dataclass
class Attempts:
    """Counts the attempts at one part of a call, within the time limit of the whole call.

    The clients use ``request_timeout_s`` for each request and the waits after failures. If a part is split, each half
    continues with ``for_half``: it has as many attempts left as the part had.

    Args:
        timeout_s: timeout of one request.
        started_s: when the call began, by ``time.monotonic``.

    ``failure``: the error to raise if there is no further attempt.
    """

    policy: RetryPolicy
    timeout_s: float
    started_s: float = field(default_factory=time.monotonic)
    failed_requests: int = 0
    failed_items: int = 0
    is_first: bool = True
    failure: RedlineError | None = None

    def for_part(self) -> Attempts:
        """Attempts for another part of the same call."""
        return replace(self, failed_requests=0, failed_items=0, is_first=True, failure=None)

    def for_half(self, error: RedlineError) -> Attempts:
        """Attempts for a half of this part, which timed out in the service with ``error``."""
        return replace(self, is_first=False, failure=error)

    @property
    def remaining_s(self) -> float:
        """Seconds left of ``max_elapsed_s``; infinite if the policy has no bound."""
        if self.policy.max_elapsed_s is None:
            return math.inf
        return self.policy.max_elapsed_s - (time.monotonic() - self.started_s)

    @property
    def is_out_of_time(self) -> bool:
        """Whether no further attempt may begin."""
        return self.remaining_s <= 0

    @property
    def request_timeout_s(self) -> float:
        """Timeout of the next request: ``timeout_s`` for the first one, else at most the remaining time."""
        return self.timeout_s if self.is_first else max(0.001, min(self.timeout_s, self.remaining_s))

    def wait_after_request_s(self, error: RedlineError) -> float | None:
        """Count a failed request: seconds to wait before the next one, None to stop."""
        self.failed_requests += 1
        return self._wait_s(self.policy, error, self.failed_requests)

    def wait_after_items_s(self, error: RedlineError) -> float | None:
        """Count an answer with a retryable ``error`` for some items: like ``wait_after_request_s``."""
        self.failed_items += 1
        return self._wait_s(self.policy.for_items(), error, self.failed_items)

    def _wait_s(self, policy: RetryPolicy, error: RedlineError, attempt: int) -> float | None:
        self.is_first = False
        # the error of a request that was cut short by the time limit is less informative than the one before
        if self.failure is None or not (isinstance(error, ConnectionFailedError) and self.is_out_of_time):
            self.failure = error
        attempts = self.failed_requests + self.failed_items
        if self.policy.max_attempts is not None and attempts >= self.policy.max_attempts:
            return None
        return policy.wait_s(error, attempt, time.monotonic() - self.started_s)


def is_retryable(error: RedlineError) -> bool:
    """Whether the same request may succeed later: there was no matching answer, or the service reports it so."""
    return isinstance(error, (ConnectionFailedError, AnswerMismatchError)) or (
        isinstance(error, ServiceError) and error.is_retryable
    )
