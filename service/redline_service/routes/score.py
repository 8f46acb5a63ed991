"""``POST /v1/score``: take a permit or refuse, validate, enqueue, await."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Hashable

from fastapi import APIRouter, Depends, Request, Response

from redline.wire import DEADLINE_HEADER, SCORE_PATH, ErrorCode, ErrorResponse, ScoreRequest, ScoreResponse
from redline_service.auth import require_key
from redline_service.disconnect import unless_disconnected
from redline_service.engine import Engine
from redline_service.errors import RequestError
from redline_service.metrics import Metrics
from redline_service.permits import Permits
from redline_service.settings import ServiceSettings

router = APIRouter(dependencies=[Depends(require_key)])


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


@router.post(
    SCORE_PATH,
    response_model=ScoreResponse,
    responses={status: {"model": ErrorResponse} for status in (401, 404, 413, 422, 503)},
    summary="Token rewards for a batch of (prompt, response)",
)
async def score(body: ScoreRequest, request: Request) -> Response:
    """Score every item; one that cannot be scored carries its own error and the others are answered."""
    engine: Engine = request.app.state.engine
    metrics: Metrics = request.app.state.metrics
    permits: Permits = request.app.state.permits
    settings: ServiceSettings = request.app.state.settings
    deadline_s = min(settings.deadline_s, asked_deadline_s(request))
    with permits.take():
        try:
            async with asyncio.timeout(deadline_s):
                work = engine.score(body, caller=caller_of(request, settings), deadline_s=deadline_s)
                answer, timing = await unless_disconnected(request, work)
        except TimeoutError as error:
            raise RequestError(ErrorCode.TIMED_OUT, f"not scored within {deadline_s:g} s", retry_after_s=5) from error
    metrics.count_response(answer)
    parts = {"tokenize": timing.tokenize_s, "queue": timing.queue_s, "inference": timing.inference_s}
    return Response(
        answer.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers={"Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in parts.items())},
    )
