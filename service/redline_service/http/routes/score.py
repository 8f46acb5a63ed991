"""``POST /v1/score``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from redline.wire import SCORE_PATH, ScoreRequest, ScoreResponse
from redline_service.http.admission import REFUSALS, ModelRoute, caller_of, engine_of, time_left_s
from redline_service.http.routes.responses import wire_response

router = APIRouter(route_class=ModelRoute)


@router.post(
    SCORE_PATH,
    response_model=ScoreResponse,
    responses=REFUSALS,
    summary="Token rewards for a batch of prompts and responses",
)
async def score(body: ScoreRequest, request: Request) -> Response:
    """Score every item. An item that cannot be scored has its own error; the others are not affected."""
    response, timing = await engine_of(request).score(body, caller=caller_of(request), deadline_s=time_left_s(request))
    return await wire_response(request, response, timing)
