"""What the endpoints that use the model have in common: a permit or a refusal, a deadline, a caller who may leave."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, TypeVar

from fastapi import Request, Response

from redline.wire import DEADLINE_HEADER, ErrorCode, ErrorResponse, ScoreResponse
from redline.wire.correction import CorrectResponse
from redline_service.disconnect import unless_disconnected
from redline_service.errors import RequestError
from redline_service.jobs import Timing
from redline_service.metrics import Metrics
from redline_service.permits import Permits
from redline_service.settings import ServiceSettings

REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 404, 413, 422, 503)}
A = TypeVar("A", ScoreResponse, CorrectResponse)
# called with caller= and deadline_s=
Work = Callable[..., Coroutine[Any, Any, tuple[A, Timing]]]


def asked_deadline_s(request: Request) -> float:
    """How long the caller says it will wait, infinity if it says nothing. Raises RequestError INVALID_REQUEST."""
    asked = request.headers.get(DEADLINE_HEADER)
    if asked is None:
        return math.inf
    try:
        seconds = float(asked)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise RequestError(ErrorCode.INVALID_REQUEST, f"{DEADLINE_HEADER} is not a number of seconds above 0")
    return seconds


def caller_of(request: Request, settings: ServiceSettings) -> Hashable:
    """Who shares the model with others: the machine that asks, and the key it holds where keys count."""
    key = request.headers.get("authorization") if settings.keys else None
    return key, request.client.host if request.client else None


async def admitted(request: Request, work: Work[A]) -> tuple[A, Timing]:
    """What ``work`` comes to, within the caller's time and while the caller is there.

    Raises:
        RequestError: no permit is left, or the deadline passed.
        ClientDisconnect: the caller has gone.
    """
    metrics: Metrics = request.app.state.metrics
    permits: Permits = request.app.state.permits
    settings: ServiceSettings = request.app.state.settings
    deadline_s = min(settings.deadline_s, asked_deadline_s(request))
    with permits.take():
        try:
            async with asyncio.timeout(deadline_s):
                working = work(caller=caller_of(request, settings), deadline_s=deadline_s)
                answer, timing = await unless_disconnected(request, working)
        except TimeoutError as error:
            raise RequestError(ErrorCode.TIMED_OUT, f"not answered within {deadline_s:g} s", retry_after_s=5) from error
    metrics.count_response(answer)
    return answer, timing


def as_response(body: str, timing: Timing) -> Response:
    """JSON, with the seconds that each part took in its headers."""
    parts = {"tokenize": timing.tokenize_s, "queue": timing.queue_s, "inference": timing.inference_s}
    told = ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in parts.items())
    return Response(body, media_type="application/json", headers={"Server-Timing": told})


async def answered(request: Request, work: Work[A]) -> Response:
    """What ``work`` comes to, as a response of Redline's own. Raises as ``admitted``."""
    answer, timing = await admitted(request, work)
    return as_response(answer.model_dump_json(exclude_none=True), timing)
