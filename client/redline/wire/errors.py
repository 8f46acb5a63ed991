"""The error codes of the HTTP API, and the body of an error answer."""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from redline.wire.base import AnswerModel


class ErrorSpec(NamedTuple):
    """HTTP status and retryability of an error code."""

    status: int
    retryable: bool


class ErrorCode(StrEnum):
    """All error codes of requests and items; ``ERROR_TABLE`` has status and retryability."""

    INVALID_REQUEST = "invalid_request"
    UNAUTHORIZED = "unauthorized"
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    MODEL_NOT_FOUND = "model_not_found"
    REQUEST_TOO_LARGE = "request_too_large"
    BODY_TIMEOUT = "body_timeout"
    INVALID_PROMPT = "invalid_prompt"
    EMPTY_RESPONSE = "empty_response"
    BAD_IDS = "bad_ids"
    TOKENIZER_MISMATCH = "tokenizer_mismatch"
    BAD_OFFSETS = "bad_offsets"
    TOO_LONG = "too_long"
    UNSUPPORTED = "unsupported"
    NON_FINITE = "non_finite"
    OUT_OF_MEMORY = "out_of_memory"
    OVERLOADED = "overloaded"
    NOT_READY = "not_ready"
    TIMED_OUT = "timed_out"
    INTERNAL = "internal"


# 503 and not 429 for overload: some RL frameworks treat every 4xx as fatal (docs/reference/http-api.md).
ERROR_TABLE: dict[ErrorCode, ErrorSpec] = {
    ErrorCode.INVALID_REQUEST: ErrorSpec(422, False),
    ErrorCode.UNAUTHORIZED: ErrorSpec(401, False),
    ErrorCode.NOT_FOUND: ErrorSpec(404, False),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorSpec(405, False),
    ErrorCode.MODEL_NOT_FOUND: ErrorSpec(404, False),
    ErrorCode.REQUEST_TOO_LARGE: ErrorSpec(413, False),
    ErrorCode.BODY_TIMEOUT: ErrorSpec(408, False),
    ErrorCode.INVALID_PROMPT: ErrorSpec(422, False),
    ErrorCode.EMPTY_RESPONSE: ErrorSpec(422, False),
    ErrorCode.BAD_IDS: ErrorSpec(422, False),
    ErrorCode.TOKENIZER_MISMATCH: ErrorSpec(409, False),
    ErrorCode.BAD_OFFSETS: ErrorSpec(422, False),
    ErrorCode.TOO_LONG: ErrorSpec(413, False),
    ErrorCode.UNSUPPORTED: ErrorSpec(422, False),
    ErrorCode.NON_FINITE: ErrorSpec(500, False),
    ErrorCode.OUT_OF_MEMORY: ErrorSpec(503, True),
    ErrorCode.OVERLOADED: ErrorSpec(503, True),
    ErrorCode.NOT_READY: ErrorSpec(503, True),
    ErrorCode.TIMED_OUT: ErrorSpec(503, True),
    ErrorCode.INTERNAL: ErrorSpec(500, True),
}


class ErrorBody(AnswerModel):
    """The error of an item, or (wrapped in ``ErrorResponse``) of the whole request."""

    code: str
    message: str
    retryable: bool

    @classmethod
    def of(cls, code: ErrorCode, message: str) -> ErrorBody:
        """The body for ``code``, with the retryability from ``ERROR_TABLE``."""
        return cls(code=code.value, message=message, retryable=ERROR_TABLE[code].retryable)


class ErrorResponse(AnswerModel):
    """The body of every answer whose status is not 2xx."""

    error: ErrorBody
