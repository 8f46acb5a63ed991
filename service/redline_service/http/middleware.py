"""ASGI middleware for every request: key in the path, request id, metrics, overload, responses for failures."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from redline.wire import DEADLINE_HEADER, REQUEST_ID_HEADER, ErrorCode
from redline_service.errors import RequestError
from redline_service.http.admission import Handler, caller_id, requested_deadline_s
from redline_service.http.auth import is_authorized, move_key_to_header
from redline_service.http.error_responses import CALLER_ERRORS, error_response
from redline_service.http.logs import access_line
from redline_service.metrics import Metrics

logger = logging.getLogger("redline.service")
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_DEADLINE_HEADER = DEADLINE_HEADER.lower().encode()
_MAX_ID_LENGTH = 128


class _Route(NamedTuple):
    path: str


class RequestMiddleware:
    """Accepts or creates ``X-Request-Id``, counts requests and latencies, and responds to failures. Reads no body.

    Requests for the model go directly to their handlers, because FastAPI's routing takes longer than all work of the
    service on a request. Under overload they are refused on their headers alone, before any other work, because work on
    refused requests slows down the requests that are served.

    Args:
        handlers: handlers of POST requests for the model, by path.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._metrics = metrics
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI: one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        move_key_to_header(scope)
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        headers = dict(reversed(scope["headers"]))  # of several with one name, the first counts
        sent_id = headers.get(_ID_HEADER, b"")
        is_valid_id = 0 < len(sent_id) <= _MAX_ID_LENGTH and all(33 <= byte < 127 for byte in sent_id)
        request_id = sent_id if is_valid_id else uuid.uuid4().hex.encode()
        started = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (_ID_HEADER, request_id)]
            await send(message)

        self._metrics.in_flight.inc()
        try:
            handler = self._handlers.get(scope["path"]) if scope["method"] == "POST" else None
            if handler is None:
                await self._app(scope, receive, send_with_id)
            else:
                scope["route"] = _Route(scope["path"])
                await (await self._respond(handler, scope, headers, receive))(scope, receive, send_with_id)
        except Exception as error:  # caught here so that this response has a request id, too
            logger.error("a request failed", exc_info=error)
            if status:  # the response has started: the connection is closed before its end
                raise
            failure = RequestError(
                ErrorCode.INTERNAL, "the request failed because of an error in the service; see the log of the service"
            )
            await error_response(failure)(scope, receive, send_with_id)
        finally:
            self._metrics.in_flight.dec()
            seconds = time.perf_counter() - started
            route = getattr(scope.get("route"), "path", "unmatched")
            self._metrics.requests.labels(route, str(status or 500)).inc()
            self._metrics.latency.labels(route).observe(seconds)
            if logger.isEnabledFor(logging.DEBUG):
                logger.debug(access_line(scope["method"], route, status or 500, seconds))

    async def _respond(self, handler: Handler, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Response:
        """The response of ``handler``, or a refusal if the request could not be answered in time."""
        state = scope["app"].state
        authorization = headers.get(b"authorization", b"")
        try:
            if state.engine is not None and is_authorized(state.settings, authorization):
                deadline_s = requested_deadline_s(headers.get(_DEADLINE_HEADER, b"inf").decode("latin-1"))
                caller = caller_id(state.settings, authorization, scope["client"])
                state.engine.check_load(caller, min(state.settings.deadline_s, deadline_s))
            return await handler(Request(scope, receive))
        except CALLER_ERRORS as error:
            return error_response(error)
