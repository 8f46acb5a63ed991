"""How every request for the model comes in: key, slot, deadline, body, and a caller who may leave, in this order."""

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
from redline_service.http.auth import check_key, key_number
from redline_service.http.disconnect import run_until_disconnect
from redline_service.http.limiter import BodyMemory, ConcurrencyLimiter
from redline_service.http.request_body import parse_body, read_body
from redline_service.settings import ServiceSettings

_STATUSES = (401, 404, 408, 413, 422, 503)
REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in _STATUSES}
# Bodies up to this size are parsed on the event loop: handing them to a thread takes longer.
_SMALL_BODY = 16 * 1024
# Of the time for which a caller waits: this share, and at most so many seconds, are for the answer's way back.
_MARGIN_SHARE, _MARGIN_S = 0.05, 0.5
Handler = Callable[[Request], Coroutine[Any, Any, Response]]


def engine_of(request: Request) -> Engine:
    """The engine that answers. Raises RequestError NOT_READY while the model is being loaded."""
    engine: Engine | None = getattr(request.app.state, "engine", None)
    if engine is None or not engine.has_scored:
        raise RequestError(ErrorCode.NOT_READY, "the model is being loaded", retry_after_s=1)
    return engine


def caller_of(request: Request) -> Hashable:
    """Who shares the model with others."""
    settings: ServiceSettings = request.app.state.settings
    return caller_name(settings, request.headers.get("authorization", "").encode("latin-1"), request.client)


def caller_name(settings: ServiceSettings, authorization: bytes, client: tuple[str, int] | None) -> Hashable:
    """The machine that asks, and the key it holds where keys count."""
    return key_number(settings, authorization), client[0] if client else None


def time_left_s(request: Request) -> float:
    """Seconds until the request's deadline."""
    deadline: float = request.state.deadline
    return deadline - time.perf_counter()


class GuardedRoute(APIRoute):
    """A route that asks for a key, where keys are set, before it does anything else."""

    def get_route_handler(self) -> Handler:
        """FastAPI's hook for what a route does with a request."""
        handle = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            check_key(request)
            return await handle(request)

        return guarded


class ModelRoute(GuardedRoute):
    """A route whose endpoint takes ``body`` and ``request`` and uses the model.

    A request is refused if no slot is free; then its body is read, which takes its caller's share of ``BodyMemory``;
    then it gets its slot and is parsed. A body that never ends takes no slot. All of it, and the endpoint, happens
    before the request's deadline, and ends when the caller hangs up. ``request.state.deadline`` is the deadline in
    ``perf_counter`` seconds. Overload is noticed before that, by ``RequestMiddleware``.
    """

    def get_route_handler(self) -> Handler:
        """FastAPI's hook for what a route does with a request; raises RequestError, OverloadedError."""
        endpoint: Callable[..., Coroutine[Any, Any, Response]] = self.endpoint
        adapter: TypeAdapter[Any] = TypeAdapter(get_type_hints(endpoint, include_extras=True)["body"])

        async def handle(request: Request) -> Response:
            check_key(request)
            settings: ServiceSettings = request.app.state.settings
            limiter: ConcurrencyLimiter = request.app.state.limiter
            memory: BodyMemory = request.app.state.body_memory
            requested_s = requested_deadline_s(request.headers.get(DEADLINE_HEADER))
            # the answer is to be there before its caller has hung up
            deadline_s = min(settings.deadline_s, requested_s - min(_MARGIN_SHARE * requested_s, _MARGIN_S))
            caller = caller_of(request)
            limiter.check(caller)
            try:
                async with asyncio.timeout(deadline_s):
                    request.state.deadline = time.perf_counter() + deadline_s
                    engine = engine_of(request)
                    with memory.share(caller) as share:
                        raw = await read_body(
                            request, share, max_bytes=settings.max_body_bytes, timeout_s=settings.body_timeout_s
                        )
                        with limiter.slot(caller):
                            if len(raw) <= _SMALL_BODY:
                                body = parse_body(raw, adapter, settings.max_items)
                            else:
                                body = await engine.threads.run(parse_body, raw, adapter, settings.max_items)
                            del raw
                            share.release()
                            return await run_until_disconnect(request, endpoint(body, request))
            except TimeoutError as error:
                reason = f"not answered within {deadline_s:g} s"
                raise RequestError(ErrorCode.TIMED_OUT, reason, retry_after_s=5) from error

        return handle


def requested_deadline_s(sent: str | None) -> float:
    """How long the caller says it will wait, infinity if it says nothing. Raises RequestError INVALID_REQUEST."""
    if sent is None:
        return math.inf
    try:
        seconds = float(sent)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{DEADLINE_HEADER} is not a number of seconds above 0")
    return seconds
