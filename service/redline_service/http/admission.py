"""Admission of requests for the model, in this order: key, free slot, deadline, body, slot, parsing, endpoint."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, get_type_hints

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import TypeAdapter

from redline.wire import DEADLINE_HEADER, ErrorCode, ErrorResponse
from redline_service.engine import Engine
from redline_service.errors import RequestError
from redline_service.http.auth import check_key, key_index
from redline_service.http.disconnect import run_until_disconnect
from redline_service.http.limiter import BodyMemory, ConcurrencyLimiter
from redline_service.http.request_body import parse_body, read_body
from redline_service.settings import ServiceSettings

_STATUSES = (401, 404, 408, 413, 422, 503)
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in _STATUSES}
# Bodies up to this size are parsed on the event loop: handing them to a thread would take longer.
_SMALL_BODY_BYTES = 16 * 1024
# The response must be sent before the caller's timeout: earlier by this share of it, and by at most so many seconds.
_MARGIN_SHARE, _MAX_MARGIN_S = 0.05, 0.5
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def engine_of(request: Request) -> Engine:
    """The engine of the service. Raises RequestError NOT_READY while the model is being loaded."""
    engine: Engine | None = getattr(request.app.state, "engine", None)
    if engine is None or not engine.has_scored:
        raise RequestError(ErrorCode.NOT_READY, "the model is being loaded", retry_after_s=1)
    return engine


def caller_of(request: Request) -> Hashable:
    """Identifies the caller of a request, for sharing the model evenly between callers."""
    settings: ServiceSettings = request.app.state.settings
    return caller_id(settings, request.headers.get("authorization", "").encode("latin-1"), request.client)


def caller_id(settings: ServiceSettings, authorization: bytes, client: tuple[str, int] | None) -> Hashable:
    """The index of the caller's key (None if no keys are set) and its address."""
    return key_index(settings, authorization), client[0] if client else None


def time_left_s(request: Request) -> float:
    """Seconds until the request's deadline."""
    deadline: float = request.state.deadline
    return deadline - time.perf_counter()


class GuardedRoute(APIRoute):
    """A route that checks the key first, if keys are set."""

    def get_route_handler(self) -> Handler:
        """FastAPI's hook: the function that handles a request."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            check_key(request)
            return await handle(request)

        return guarded


class ModelRoute(GuardedRoute):
    """A route whose endpoint takes ``body`` and ``request`` and uses the model.

    A request is refused if no slot is free. Otherwise its body is read into ``BodyMemory``; then the request gets a
    slot and is parsed. So a body that never ends holds no slot, and no body is parsed without a slot. Everything,
    including the endpoint, must end before the request's deadline, and is cancelled if the caller disconnects.
    ``request.state.deadline`` is the deadline in ``perf_counter`` seconds. ``RequestMiddleware`` refuses requests under
    overload before they get here.
    """

    def get_route_handler(self) -> Handler:
        """FastAPI's hook: the function that handles a request. It raises RequestError and OverloadedError."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(endpoint, include_extras=True)["body"])

        async def handle(request: Request) -> Response:
            check_key(request)
            settings: ServiceSettings = request.app.state.settings
            limiter: ConcurrencyLimiter = request.app.state.limiter
            memory: BodyMemory = request.app.state.body_memory
            requested_s = requested_deadline_s(request.headers.get(DEADLINE_HEADER))
            deadline_s = min(settings.deadline_s, requested_s - min(_MARGIN_SHARE * requested_s, _MAX_MARGIN_S))
            caller = caller_of(request)
            limiter.check(caller)
            try:
                async with asyncio.timeout(deadline_s):
                    request.state.deadline = time.perf_counter() + deadline_s
                    engine = engine_of(request)
                    with memory.reservation(caller) as reservation:
                        raw = await read_body(
                            request, reservation, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
                        )
                        with limiter.slot(caller):
                            if len(raw) <= _SMALL_BODY_BYTES:
                                body = parse_body(raw, adapter, settings.max_items)
                            else:
                                body = await engine.threads.run(parse_body, raw, adapter, settings.max_items)
                            del raw
                            reservation.release()
                            return await run_until_disconnect(request, endpoint(body, request))
            except TimeoutError as error:
                reason = f"the request was not answered within {deadline_s:g} s"
                raise RequestError(ErrorCode.TIMED_OUT, reason, retry_after_s=5) from error

        return handle


def requested_deadline_s(header: str | None) -> float:
    """The deadline in the request's header, in seconds; infinity if there is none. Raises RequestError."""
    if header is None:
        return math.inf
    try:
        seconds = float(header)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{DEADLINE_HEADER} must be a number of seconds greater than 0")
    return seconds
