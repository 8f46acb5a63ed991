"""Errors of the service, and the only mapping of scheduler and model errors to the wire's error codes."""

from __future__ import annotations

import math

from pydantic import ValidationError

from redline.wire import ERROR_TABLE, ErrorBody, ErrorCode, ErrorResponse
from redline_model import errors as model_errors
from redline_service.scheduling.errors import OverloadedError

_SHOWN_ERRORS = 10
# Characters of an error message, however long the texts that it quotes are.
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
    """The whole request is refused. ``retry_after_s`` is sent as the header Retry-After."""

    def __init__(self, code: ErrorCode, message: str, retry_after_s: int | None = None) -> None:
        # it may quote a text of the request that is not valid Unicode
        message = _shorten(message, _MAX_MESSAGE).encode(errors="backslashreplace").decode()
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_s = retry_after_s

    @property
    def status(self) -> int:
        """The HTTP status of the code."""
        return ERROR_TABLE[self.code].status

    def response(self) -> ErrorResponse:
        """The body of the HTTP response."""
        return ErrorResponse(error=ErrorBody.of(self.code, self.message))


def overload_error(error: OverloadedError) -> RequestError:
    """The wire error for a refusal of the scheduler. Retry-After is a whole number of seconds, from 1 to 60."""
    return RequestError(ErrorCode.OVERLOADED, str(error), max(1, min(60, math.ceil(error.retry_after_s))))


class ItemRejectedError(Exception):
    """The service refuses one item before the model package encodes it."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def item_error(error: Exception) -> ErrorBody:
    """The wire error in place of an item's result. Of unknown exceptions it shows the type only."""
    if isinstance(error, ItemRejectedError):
        return ErrorBody.of(error.code, _shorten(str(error), _MAX_MESSAGE))
    code = _CODES.get(type(error))  # type: ignore[arg-type]
    if code is None:
        return ErrorBody.of(ErrorCode.INTERNAL, f"scoring this item failed ({type(error).__name__})")
    return ErrorBody.of(code, _shorten(str(error), _MAX_MESSAGE))


def describe_validation(error: ValidationError) -> str:
    """Validation errors as one line: the field and the problem. At most ten errors, each shortened."""
    errors = error.errors(include_url=False, include_context=False, include_input=False)
    parts = []
    for details in errors[:_SHOWN_ERRORS]:
        field = ".".join(_shorten(str(part)) for part in details["loc"])
        message = _shorten(str(details["msg"]).removeprefix("Value error, "), 400)
        parts.append(f"{field}: {message}" if field else message)
    if len(errors) > _SHOWN_ERRORS:
        parts.append(f"and {len(errors) - _SHOWN_ERRORS} more")
    return "; ".join(parts)


def _shorten(text: str, max_length: int = 60) -> str:
    return text if len(text) <= max_length else text[:max_length] + "..."
