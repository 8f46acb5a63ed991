"""When to ask again, and how long to wait before: one small decision, shared by both clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace

from redline.errors import ConnectionFailedError, RedlineError, ServiceError
from redline.wire import ErrorCode

_ITEM_ATTEMPTS = 5
OnWait = Callable[[RedlineError, float], None]


@dataclass(frozen=True)
class RetryPolicy:
    """Exponential waits with full jitter, Retry-After honoured, capped.

    ``max_attempts``: tries in all; None for no bound. ``patience_s``: no new try begins later than this after
    the first; None for no bound. ``first_wait_s``, ``longest_wait_s``: the range of waits. A Retry-After is
    waited for up to ``longest_wait_s``. ``has_jitter`` False makes waits deterministic.
    """

    max_attempts: int | None = 5
    patience_s: float | None = 180.0
    first_wait_s: float = 0.25
    longest_wait_s: float = 20.0
    has_jitter: bool = True

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
        if self.patience_s is not None and elapsed_s + wait > self.patience_s:
            return None
        return wait


NO_RETRY = RetryPolicy(max_attempts=1)


def is_retryable(error: RedlineError) -> bool:
    """Whether the same request may succeed later: no answer, or an answer that says so itself."""
    return isinstance(error, ConnectionFailedError) or (isinstance(error, ServiceError) and error.is_retryable)
