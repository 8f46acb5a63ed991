"""``POST /v1/score``: take a permit or refuse, validate, enqueue, await."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Depends, Request, Response

from redline.wire import SCORE_PATH, ErrorCode, ErrorResponse, ScoreRequest, ScoreResponse
from redline_service.auth import require_key
from redline_service.disconnect import unless_disconnected
from redline_service.engine import Engine
from redline_service.errors import RequestError
from redline_service.metrics import Metrics
from redline_service.permits import Permits
from redline_service.settings import ServiceSettings

router = APIRouter(dependencies=[Depends(require_key)])


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
    with permits.take():
        try:
            async with asyncio.timeout(settings.deadline_s):
                answer, timing = await unless_disconnected(request, engine.score(body))
        except TimeoutError as error:
            raise RequestError(
                ErrorCode.TIMED_OUT, f"not scored within {settings.deadline_s:g} s", retry_after_s=5
            ) from error
    metrics.count_response(answer)
    parts = {"tokenize": timing.tokenize_s, "queue": timing.queue_s, "inference": timing.inference_s}
    return Response(
        answer.model_dump_json(exclude_none=True),
        media_type="application/json",
        headers={"Server-Timing": ", ".join(f"{name};dur={s * 1000:.1f}" for name, s in parts.items())},
    )
