"""The exceptions of this package.

RedlineError
├── ConnectionFailedError   no answer: unreachable, reset, timed out
├── ProtocolError           an answer that does not follow the HTTP API
│   ├── AnswerTooLargeError it was larger than the client accepts
│   ├── AnswerMismatchError it was the answer to another request
│   └── ConfigurationError  nothing was sent: the environment names a proxy or certificates that cannot be used
├── ServiceError            the service refused the request: code, status, retryable
├── ItemsFailedError        the request succeeded, but some of its items failed
├── ModelChangedError       the service changed its reward model
├── StepRefusedError        a PPO step met a number that is not finite; the step was not applied
└── CommandError            a command cannot continue; its message is printed as one line
    ├── RowsError           rows of a file cannot be used, or the file cannot be read
    ├── PolicyError         a policy cannot be loaded, or cannot continue a prompt
    └── CheckpointError     a checkpoint cannot be read, or belongs to another run

Library code does not raise ``CommandError`` itself, only its three subclasses. They stay subclasses until 0.2, because
0.1 raised CommandError instead and callers may catch it.
"""

from __future__ import annotations

from collections.abc import Sequence

from redline.text.printable import one_line
from redline.wire import ErrorBody


class RedlineError(Exception):
    """Base class of the client's errors; the message can be shown to a user."""


class ConnectionFailedError(RedlineError):
    """The service could not be reached, or did not answer in time."""


class ProtocolError(RedlineError):
    """The answer does not follow the HTTP API of a Redline service."""


class AnswerTooLargeError(ProtocolError):
    """The answer is larger than ``max_answer_bytes``, or than any answer to the request can be; reading was stopped."""


class AnswerMismatchError(ProtocolError):
    """The answer belongs to another request, as after two answers on one connection; it was not read."""


class ConfigurationError(ProtocolError):
    """The environment names a proxy or certificates that cannot be used; the message names the variable."""


class ServiceError(RedlineError):
    """The service refused a request.

    ``code`` and ``is_retryable`` come from the service; ``retry_after_s`` is its Retry-After header.
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
    """Some items failed; ``failures`` are their positions and errors."""

    def __init__(self, failures: Sequence[tuple[int, ErrorBody]]) -> None:
        position, body = failures[0]
        more = f", and {len(failures) - 1} more" if len(failures) > 1 else ""
        super().__init__(
            f"item {position} could not be answered: {one_line(body.message)} ({one_line(body.code)}){more}"
        )
        self.failures = list(failures)


class ModelChangedError(RedlineError):
    """The service changed its reward model during a run that must stop in that case."""


class StepRefusedError(RedlineError):
    """A PPO step met a reward, log-probability, loss or gradient that is not finite; no weights were changed."""


class CommandError(RedlineError):
    """A command cannot continue. For the command line; library code raises the subclasses below."""


class RowsError(CommandError):
    """Rows of a file cannot be used, or the file cannot be read; the message names the first bad rows."""


class PolicyError(CommandError):
    """A policy cannot be loaded, cannot be trained with the given settings, or cannot continue a prompt."""


class CheckpointError(CommandError):
    """A checkpoint cannot be read, or belongs to a run with other settings."""
