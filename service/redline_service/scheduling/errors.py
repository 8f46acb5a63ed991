"""Errors for work that the scheduler refuses or drops. ``redline_service.errors`` maps them to the wire's codes."""

from __future__ import annotations


class OverloadedError(Exception):
    """The work was refused: the queue is full, or the work could not be finished in time.

    ``retry_after_s``: seconds after which the caller may try again.
    """

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(OverloadedError):
    """The work was queued and can no longer be finished before its deadline."""
