"""``POST /v1/score``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from redline.wire import SCORE_PATH, ScoreRequest, ScoreResponse
from redline_service.auth import require_key
from redline_service.engine import Engine
from redline_service.routes.answering import REFUSALS, answered

router = APIRouter(dependencies=[Depends(require_key)])


@router.post(
    SCORE_PATH,
    response_model=ScoreResponse,
    responses=REFUSALS,
    summary="Token rewards for a batch of (prompt, response)",
)
async def score(body: ScoreRequest, request: Request) -> Response:
    """Score every item; one that cannot be scored carries its own error and the others are answered."""
    engine: Engine = request.app.state.engine
    return await answered(request, partial(engine.score, body))
