"""When to ask again, how long to wait before, and how long a request may take: decided here for both clients."""

from __future__ import annotations

import math
import random
import time
import warnings
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, replace
from typing import Any

from redline.errors import AnswerMismatchError, ConnectionFailedError, RedlineError, ServiceError
from redline.wire import ErrorCode

_ITEM_ATTEMPTS = 5
OnWait = Callable[[RedlineError, float], None]
_NOT_GIVEN: Any = object()


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential waits with full jitter, Retry-After honoured, capped.

    ``max_attempts``: tries in all; None for no bound. ``max_elapsed_s``: seconds from the start of the call (``score``,
    ``correct``, ``model``, ...) after which no new try begins and no wait goes on, and what a request that is
    repeated may still take at most; None for no bound. However many requests a call takes, they share this time, and a
    call that needs no second try is not bounded by it. ``first_wait_s``, ``longest_wait_s``: the range of waits. A
    Retry-After is waited for up to ``longest_wait_s``. ``has_jitter`` False makes waits deterministic.

    ``patience_s`` is the name of ``max_elapsed_s`` in 0.1; it is accepted with a DeprecationWarning until 0.2.
    """

    max_attempts: int | None = 5
    max_elapsed_s: float | None = 180.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    has_jitter: bool = True
    patience_s: InitVar[float | None] = field(default=_NOT_GIVEN, kw_only=True)

    def __post_init__(self, patience_s: float | None) -> None:
        if patience_s is not _NOT_GIVEN:
            message = "RetryPolicy: patience_s is named max_elapsed_s; the old name is removed in 0.2"
            warnings.warn(message, DeprecationWarning, stacklevel=3)
            object.__setattr__(self, "max_elapsed_s", patience_s)

    def for_items(self) -> RetryPolicy:
        """The same for single items that the service could not score: it is there, so a few tries are enough."""
        return replace(self, max_attempts=min(self.max_attempts or _ITEM_ATTEMPTS, _ITEM_ATTEMPTS))

    def wait_s(self, error: RedlineError, attempt: int, elapsed_s: float) -> float | None:
        """Seconds to wait after try number ``attempt`` (from 1) failed with ``error``; None to give up."""
        if not is_retryable(error) or (self.max_attempts is not None and attempt >= self.max_attempts):
            return None
        if isinstance(error, ServiceError) and error.code == ErrorCode.INTERNAL and attempt >= _ITEM_ATTEMPTS:
            return None  # a fault that comes back is not an absence to be waited out
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
    """The attempts at one part of a call, on the clock of the whole call.

    The clients ask for ``request_timeout_s`` before each request, and for the wait after each failure. A part that is
    sent in halves goes on with ``for_half``: its halves have as many tries left as it had itself.

    Args:
        timeout_s: what a request may take.
        started_s: when the call began, by ``time.monotonic``.

    ``failure``: what to raise if nothing more is tried.
    """

    policy: RetryPolicy
    timeout_s: float
    started_s: float = field(default_factory=time.monotonic)
    failed_requests: int = 0
    failed_items: int = 0
    is_first: bool = True
    failure: RedlineError | None = None

    def for_part(self) -> Attempts:
        """Of another part of the same call, which has not been tried."""
        return replace(self, failed_requests=0, failed_items=0, is_first=True, failure=None)

    def for_half(self, error: RedlineError) -> Attempts:
        """Of a half of this part, which the service found too large and refused with ``error``."""
        return replace(self, is_first=False, failure=error)

    @property
    def left_s(self) -> float:
        """Seconds left of ``max_elapsed_s``; infinite if the policy has no bound."""
        if self.policy.max_elapsed_s is None:
            return math.inf
        return self.policy.max_elapsed_s - (time.monotonic() - self.started_s)

    @property
    def is_out_of_time(self) -> bool:
        """Whether no further try may begin."""
        return self.left_s <= 0

    @property
    def request_timeout_s(self) -> float:
        """What the next request may take: all of ``timeout_s`` if it is the first, else no more than is left."""
        return self.timeout_s if self.is_first else max(0.001, min(self.timeout_s, self.left_s))

    def wait_after_request_s(self, error: RedlineError) -> float | None:
        """Count a request that failed with ``error``: seconds to wait before the next, None to give up."""
        self.failed_requests += 1
        return self._wait_s(self.policy, error, self.failed_requests)

    def wait_after_items_s(self, error: RedlineError) -> float | None:
        """Count a request that was answered, with ``error`` for some of its items: as ``wait_after_request_s``."""
        self.failed_items += 1
        return self._wait_s(self.policy.for_items(), error, self.failed_items)

    def _wait_s(self, policy: RetryPolicy, error: RedlineError, attempt: int) -> float | None:
        self.is_first = False
        # a request that was given up at the end of the time says less than the failure before it
        if self.failure is None or not (isinstance(error, ConnectionFailedError) and self.is_out_of_time):
            self.failure = error
        tries = self.failed_requests + self.failed_items
        if self.policy.max_attempts is not None and tries >= self.policy.max_attempts:
            return None
        return policy.wait_s(error, attempt, time.monotonic() - self.started_s)


def is_retryable(error: RedlineError) -> bool:
    """Whether the same request may succeed later: no answer or one to another request, or an answer that says so."""
    return isinstance(error, (ConnectionFailedError, AnswerMismatchError)) or (
        isinstance(error, ServiceError) and error.is_retryable
    )
