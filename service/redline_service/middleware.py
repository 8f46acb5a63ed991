"""What happens to every request: its key off the path, an id, a count, one shape for failures. Plain ASGI."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Collection
from typing import NamedTuple

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redline.wire import DEADLINE_HEADER, REQUEST_ID_HEADER, ErrorCode
from redline_service.admission import caller_name, requested_deadline_s
from redline_service.auth import is_authorized, take_key_off_path
from redline_service.errors import OverloadedError, RequestError, overload_error
from redline_service.logs import access_line
from redline_service.metrics import Metrics

logger = logging.getLogger("redline.service")
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_DEADLINE_HEADER = DEADLINE_HEADER.lower().encode()
_MAX_ID = 128


class _Route(NamedTuple):
    path: str


def error_response(error: RequestError) -> JSONResponse:
    """An error in the one shape of the wire."""
    headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse(error.response().model_dump(), error.status, headers)


class RequestMiddleware:
    """Takes or makes ``X-Request-Id``, counts routes and latencies, answers what failed. Reads no body.

    Under overload it refuses requests for the model on their headers alone, before anything else is done for them: what
    a refused request costs is taken from those that are served.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, model_paths: Collection[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._model_paths = model_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        take_key_off_path(scope)
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        headers = dict(scope["headers"])
        sent_id = headers.get(_ID_HEADER, b"")
        is_fit = 0 < len(sent_id) <= _MAX_ID and all(33 <= byte < 127 for byte in sent_id)
        request_id = sent_id if is_fit else uuid.uuid4().hex.encode()
        started = time.perf_counter()
        status = 0

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_ID_HEADER, request_id)]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            refusal = self._refusal(scope, headers) if scope["path"] in self._model_paths else None
            if refusal is not None:
                scope["route"] = _Route(scope["path"])
                await refusal(scope, receive, labelled)
                return
            await self._app(scope, receive, labelled)
        except Exception as error:  # here, not further out, so that this answer too has its id
            logger.error("a request failed", exc_info=error)
            if status:  # it has begun already: the connection ends without its rest
                raise
            failure = RequestError(ErrorCode.INTERNAL, "the request failed inside the service; its log says why")
            await error_response(failure)(scope, receive, labelled)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status or 500)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(access_line(scope["method"], route, status or 500, seconds))

    def _refusal(self, scope: Scope, headers: dict[bytes, bytes]) -> JSONResponse | None:
        """The answer to a request that could not be served in time; None if it could, or is wrong in another way."""
        state = scope["app"].state
        authorization = headers.get(b"authorization", b"")
        if state.engine is None or scope["method"] != "POST" or not is_authorized(state.settings, authorization):
            return None
        try:
            deadline_s = requested_deadline_s(headers.get(_DEADLINE_HEADER, b"inf").decode("latin-1"))
            caller = caller_name(state.settings, authorization, scope["client"])
            state.engine.check_load(caller, min(state.settings.deadline_s, deadline_s))
        except RequestError:
            return None
        except OverloadedError as error:
            return error_response(overload_error(error))
        return None
