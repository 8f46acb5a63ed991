"""Everything this package raises on purpose.

RedlineError
├── ConnectionFailedError   no answer came: unreachable, reset, timed out
├── ProtocolError           an answer came that is not Redline's contract
│   ├── AnswerTooLargeError it was larger than the client accepts
│   ├── AnswerMismatchError it was the answer to another request
│   └── ConfigurationError  nothing was asked: the environment names a proxy or certificates that cannot be used
├── ServiceError            the service refused the request: code, status, retryable
├── ItemsFailedError        the request was answered, some of its items could not be
├── ModelChangedError       the service answers with other weights than before
├── StepRefusedError        a step of PPO met a number that is not finite; nothing was learned from it
└── CommandError            a command cannot go on; its message is the one line that is printed
    ├── RowsError           rows of a file cannot be used, or the file cannot be read
    ├── PolicyError         a policy cannot be loaded, or cannot continue a prompt
    └── CheckpointError     a checkpoint cannot be read, or belongs to another run

Library code raises none of ``CommandError`` itself: the three below it are the library's. They are CommandErrors until
0.2, because 0.1 raised CommandError in their place and callers may catch it.
"""

from __future__ import annotations

from collections.abc import Sequence

from redline.text.printable import one_line
from redline.wire import ErrorBody


class RedlineError(Exception):
    """Root of the client's errors; the message is fit to be shown to a user."""


class ConnectionFailedError(RedlineError):
    """The service could not be reached, or did not answer in time."""


class ProtocolError(RedlineError):
    """The answer is not one that a Redline service gives."""


class AnswerTooLargeError(ProtocolError):
    """The answer is larger than ``max_answer_bytes``, or than what was asked can take; reading it was stopped."""


class AnswerMismatchError(ProtocolError):
    """The answer is to another request, as on a connection that was answered twice; it was not read."""


class ConfigurationError(ProtocolError):
    """The environment names a proxy or certificates that cannot be used; the message names the variable."""


class ServiceError(RedlineError):
    """The service refused a request.

    ``code`` and ``is_retryable`` are the service's own words; ``retry_after_s`` is how long it asks to wait.
    """

    def __init__(
        self, body: ErrorBody, status: int, retry_after_s: float | None = None, request_id: str | None = None
    ) -> None:
        super().__init__(f"{one_line(body.message)} ({one_line(body.code)}, HTTP {status})")
        self.code = body.code
        self.status = status
        self.is_retryable = body.retryable
        self.retry_after_s = retry_after_s
        self.request_id = request_id


class ItemsFailedError(RedlineError):
    """Some items have an error in place of an answer; ``failures`` are their positions and errors."""

    def __init__(self, failures: Sequence[tuple[int, ErrorBody]]) -> None:
        position, body = failures[0]
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        super().__init__(
            f"item {position} could not be answered: {one_line(body.message)} ({one_line(body.code)}){more}"
        )
        self.failures = list(failures)


class ModelChangedError(RedlineError):
    """The reward model was swapped in mid-run and the caller asked to stop at that."""


class StepRefusedError(RedlineError):
    """A step of PPO met a reward, log-probability, loss or gradient that is not finite, and changed nothing."""


class CommandError(RedlineError):
    """A command cannot go on. For the command line; library code raises the errors below or others."""


class RowsError(CommandError):
    """Rows of a file cannot be used, or the file cannot be read; the message names the first bad rows."""


class PolicyError(CommandError):
    """A policy cannot be loaded, cannot be trained as asked, or cannot continue a prompt."""


class CheckpointError(CommandError):
    """A checkpoint cannot be read, or belongs to a run with other settings."""
