"""The service's exceptions as HTTP responses, in the one shape of the wire."""

from __future__ import annotations

from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse, Response

from redline_service.errors import RequestError, overload_error
from redline_service.scheduling.errors import OverloadedError

# What an endpoint may raise and means for its caller.
ANSWERED = (RequestError, OverloadedError, ClientDisconnect)


def error_response(error: Exception) -> Response:
    """The answer to a request that ended with one of ``ANSWERED``."""
    if isinstance(error, ClientDisconnect):
        return Response(status_code=499)  # nobody reads it; the access log and the metrics do
    if isinstance(error, OverloadedError):
        error = overload_error(error)
    assert isinstance(error, RequestError)
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.response().model_dump(), error.status, headers)
