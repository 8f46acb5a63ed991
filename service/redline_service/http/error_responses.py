"""HTTP responses for errors; every error has the same JSON format."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from redline_service.errors import RequestError, overload_error
from redline_service.scheduling.errors import OverloadedError

# Errors of an endpoint that are responses to its caller. All others are faults of the service.
CALLER_ERRORS = (RequestError, OverloadedError, ClientDisconnect)


def error_response(error: Exception) -> Response:
    """The response for one of ``CALLER_ERRORS``."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # the caller does not read it, but the access log and the metrics count it
    if isinstance(error, OverloadedError):
        error = overload_error(error)
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.response().model_dump(), error.status, headers)
