"""``POST /v1/correct``."""

from __future__ import annotations

from functools import partial

from fastapi import APIRouter, Depends, Request, Response

from redline.wire import CORRECT_PATH
from redline.wire.correction import CorrectRequest, CorrectResponse
from redline_service.auth import require_key
from redline_service.engine import Engine
from redline_service.routes.answering import REFUSALS, answered

router = APIRouter(dependencies=[Depends(require_key)])


@router.post(
    CORRECT_PATH,
    response_model=CorrectResponse,
    responses=REFUSALS,
    summary="The model's rewrite of each response, once or until the text stays the same",
)
async def correct(body: CorrectRequest, request: Request) -> Response:
    """Rewrite every item; one that cannot be rewritten carries its own error and the others are answered."""
    engine: Engine = request.app.state.engine
    return await answered(request, partial(engine.correct, body))
