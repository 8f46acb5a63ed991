"""The service's errors, and the one mapping of scheduler and model errors to the wire's codes."""

from __future__ import annotations

import math

from pydantic import ValidationError

from redline.wire import ERROR_TABLE, ErrorBody, ErrorCode, ErrorResponse
from redline_model import errors as model_errors
from redline_service.scheduling.errors import OverloadedError

_SHOWN_ERRORS = 10
# An answer that names what is wrong is a few lines long, however long what was sent.
_MAX_MESSAGE = 4000
_CODES: dict[type[model_errors.RedlineModelError], ErrorCode] = {
    model_errors.InvalidPromptError: ErrorCode.INVALID_PROMPT,
    model_errors.EmptyResponseError: ErrorCode.EMPTY_RESPONSE,
    model_errors.BadIdsError: ErrorCode.BAD_IDS,
    model_errors.TooLongError: ErrorCode.TOO_LONG,
    model_errors.NonFiniteError: ErrorCode.NON_FINITE,
    model_errors.OutOfMemoryError: ErrorCode.OUT_OF_MEMORY,
    model_errors.UnsupportedError: ErrorCode.UNSUPPORTED,
}


class RequestError(Exception):
    """A whole request is refused. ``retry_after_s`` goes out as Retry-After."""

    def __init__(self, code: ErrorCode, message: str, retry_after_s: int | None = None) -> None:
        message = _cut(message, _MAX_MESSAGE).encode(errors="backslashreplace").decode()  # it may quote what was sent
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return ERROR_TABLE[self.code].status

    def response(self) -> ErrorResponse:
        """The body to send."""
        return ErrorResponse(error=ErrorBody.of(self.code, self.message))


def overload_error(error: OverloadedError) -> RequestError:
    """The scheduler's refusal as the wire knows it. Retry-After is whole seconds, from 1 to 60."""
    return RequestError(ErrorCode.OVERLOADED, str(error), max(1, min(60, math.ceil(error.retry_after_s))))


class ItemRejectedError(Exception):
    """One item is refused by the service itself, before the kernel sees it."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def item_error(error: Exception) -> ErrorBody:
    """The body that stands in an item's place. Unknown exceptions show their type, never their text."""
    if isinstance(error, ItemRejectedError):
        return ErrorBody.of(error.code, _cut(str(error), _MAX_MESSAGE))
    code = _CODES.get(type(error))  # type: ignore[arg-type]
    if code is None:
        return ErrorBody.of(ErrorCode.INTERNAL, f"scoring this item failed ({type(error).__name__})")
    return ErrorBody.of(code, _cut(str(error), _MAX_MESSAGE))


def describe_validation(error: ValidationError) -> str:
    """Pydantic's errors as one line: where, and what is wrong; the first ten, each cut to a readable length."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    parts = []
    for one in errors[:_SHOWN_ERRORS]:
        where = ".".join(_cut(str(part)) for part in one["loc"])
        message = _cut(str(one["msg"]).removeprefix("Value error, "), 400)
        parts.append(f"{where}: {message}" if where else message)
    if len(errors) > _SHOWN_ERRORS:
        parts.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return "; ".join(parts)


def _cut(text: str, longest: int = 60) -> str:
    return text if len(text) <= longest else text[:longest] + "..."
