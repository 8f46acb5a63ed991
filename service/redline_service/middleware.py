"""What happens to every request: its key off the path, an id, a size limit, a count. Plain ASGI."""

from __future__ import annotations

import logging
import time
import uuid
from collections import deque

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redline.wire import REQUEST_ID_HEADER, ErrorCode
from redline_service.auth import take_key_off_path
from redline_service.errors import RequestError
from redline_service.metrics import Metrics

logger = logging.getLogger("redline.service")
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_MAX_ID = 128


def _refusal(code: ErrorCode, message: str) -> JSONResponse:
    error = RequestError(code, message)
    return JSONResponse(error.response().model_dump(), error.status)


class RequestMiddleware:
    """Takes or makes ``X-Request-Id``, bounds the body, counts routes and latencies."""

    def __init__(self, app: ASGIApp, *, metrics: Metrics, max_body_bytes: int) -> None:
        self._app = app
        self._metrics = metrics
        self._max_body_bytes = max_body_bytes

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
        status = 500
        read: deque[Message] = deque()

        async def replayed() -> Message:
            return read.popleft() if read else await receive()

        async def labelled(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_ID_HEADER, request_id)]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            if await self._read_body(receive, read):
                await self._app(scope, replayed, labelled)
            else:
                reason = f"the body is larger than {self._max_body_bytes} bytes"
                await _refusal(ErrorCode.REQUEST_TOO_LARGE, reason)(scope, receive, labelled)
        except Exception as error:  # here, not further out, so that this answer too has its id
            logger.error("a request failed", exc_info=error)
            reason = "the request failed inside the service; its log says why"
            await _refusal(ErrorCode.INTERNAL, reason)(scope, receive, labelled)
        finally:
            self._metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.latency.labels(route).observe(time.perf_counter() - started)

    async def _read_body(self, receive: Receive, read: deque[Message]) -> bool:
        """Collect the body's messages; False as soon as they are too large together."""
        size = 0
        while True:
            message = await receive()
            read.append(message)
            size += len(message.get("body", b""))
            if size > self._max_body_bytes:
                return False
            if message["type"] != "http.request" or not message.get("more_body", False):
                return True
