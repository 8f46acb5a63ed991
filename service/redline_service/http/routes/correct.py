"""``POST /v1/correct``."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from redline.wire import CORRECT_PATH
from redline.wire.correction import CorrectRequest, CorrectResponse
from redline_service.http.admission import REFUSALS, ModelRoute, caller_of, engine_of, time_left_s
from redline_service.http.routes.responses import wire_response

router = APIRouter(route_class=ModelRoute)


@router.post(
    CORRECT_PATH,
    response_model=CorrectResponse,
    responses=REFUSALS,
    summary="The model's rewrite of each response, once or until the text stays the same",
)
async def correct(body: CorrectRequest, request: Request) -> Response:
    """Correct every item. An item that cannot be corrected has its own error; the others are not affected."""
    response, timing = await engine_of(request).correct(
        body, caller=caller_of(request), deadline_s=time_left_s(request)
    )
    return await wire_response(request, response, timing)
