"""``GET /v1/models``: what is served, its limits and its defaults."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from redline.wire import MODELS_PATH, ErrorCode, ErrorResponse, ModelInfo, ModelList
from redline_service.errors import RequestError
from redline_service.http.admission import GuardedRoute, engine_of

_REFUSALS: dict[int | str, dict[str, Any]] = {status: {"model": ErrorResponse} for status in (401, 404, 503)}
router = APIRouter(route_class=GuardedRoute)


@router.get(MODELS_PATH, response_model_exclude_none=True, responses=_REFUSALS)
async def models(request: Request) -> ModelList:
    """Every model served."""
    return ModelList(models=[engine_of(request).info()])


@router.get(MODELS_PATH + "/{name}", response_model_exclude_none=True, responses=_REFUSALS)
async def model(name: str, request: Request) -> ModelInfo:
    """One model."""
    engine = engine_of(request)
    if not engine.knows(name):
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, f"no model {name!r} is served here; there is {engine.name!r}")
    return engine.info()
