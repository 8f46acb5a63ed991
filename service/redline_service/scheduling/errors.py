"""Why the scheduler refuses or drops work. Domain errors: ``redline_service.errors`` maps them to the wire."""

from __future__ import annotations


class OverloadedError(Exception):
    """There is no room for the work, or it could not be done in time. ``retry_after_s``: when to try again, seconds."""

    def __init__(self, message: str, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class DeadlineExceededError(OverloadedError):
    """Work that was queued can no longer be done before its deadline."""
