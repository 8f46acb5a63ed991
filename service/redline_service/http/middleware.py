"""What happens to every request: its key off the path, an id, a count, one shape for failures. Plain ASGI."""

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
from redline_service.http.admission import Handler, caller_name, requested_deadline_s
from redline_service.http.auth import is_authorized, take_key_off_path
from redline_service.http.error_responses import ANSWERED, error_response
from redline_service.http.logs import access_line
from redline_service.metrics import Metrics

logger = logging.getLogger("redline.service")
_ID_HEADER = REQUEST_ID_HEADER.lower().encode()
_DEADLINE_HEADER = DEADLINE_HEADER.lower().encode()
_MAX_ID = 128


class _Route(NamedTuple):
    path: str


class RequestMiddleware:
    """Takes or makes ``X-Request-Id``, counts routes and latencies, answers what failed. Reads no body.

    Requests for the model go to their handlers directly: FastAPI's own way to a route costs more than all of the
    service's. Under overload they are refused on their headers alone, before anything else is done for them: what a
    refused request costs is taken from those that are served.

    Args:
        handlers: of POST requests for the model, by path.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics, handlers: Mapping[str, Handler]) -> None:
        self._app = app
        self._metrics = metrics
        self._handlers = handlers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        take_key_off_path(scope)
        if len(scope["path"]) > 1:
            scope["path"] = scope["path"].rstrip("/") or "/"
        headers = dict(reversed(scope["headers"]))  # of several with one name the first counts, as everywhere
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
            handler = self._handlers.get(scope["path"]) if scope["method"] == "POST" else None
            if handler is None:
                await self._app(scope, receive, labelled)
            else:
                scope["route"] = _Route(scope["path"])
                await (await self._answer(handler, scope, headers, receive))(scope, receive, labelled)
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

    async def _answer(self, handler: Handler, scope: Scope, headers: dict[bytes, bytes], receive: Receive) -> Response:
        """What ``handler`` answers, or the refusal of a request that it could not answer in time."""
        state = scope["app"].state
        authorization = headers.get(b"authorization", b"")
        try:
            if state.engine is not None and is_authorized(state.settings, authorization):
                deadline_s = requested_deadline_s(headers.get(_DEADLINE_HEADER, b"inf").decode("latin-1"))
                caller = caller_name(state.settings, authorization, scope["client"])
                state.engine.check_load(caller, min(state.settings.deadline_s, deadline_s))
            return await handler(Request(scope, receive))
        except ANSWERED as error:
            return error_response(error)
