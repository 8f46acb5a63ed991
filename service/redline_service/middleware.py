"""What happens to every request: its key off the path, an id, a count, one shape for failures. Plain ASGI."""

from __future__ import annotations

import logging
import time
import uuid

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redline.wire import REQUEST_ID_HEADER, ErrorCode
from redline_service.auth import take_key_off_path
from redline_service.errors import RequestError
from redline_service.logs import access_line
from redline_service.metrics import Metrics

logger = logging.getLogger("redline.service")
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_MAX_ID = 128


class RequestMiddleware:
    """Takes or makes ``X-Request-Id``, counts routes and latencies, answers what failed. Reads no body."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        take_key_off_path(scope)
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        sent_id = dict(scope["headers"]).get(_ID_HEADER, b"")
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
            await self._app(scope, receive, labelled)
        except Exception as error:  # here, not further out, so that this answer too has its id
            logger.error("a request failed", exc_info=error)
            if status:  # it has begun already: the connection ends without its rest
                raise
            failure = RequestError(ErrorCode.INTERNAL, "the request failed inside the service; its log says why")
            await JSONResponse(failure.response().model_dump(), failure.status)(scope, receive, labelled)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status or 500)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(access_line(scope["method"], route, status or 500, seconds))
