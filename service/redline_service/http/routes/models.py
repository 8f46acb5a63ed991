"""``GET /v1/models``: the model, its limits and its defaults."""

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
    """A list of the only model that this service has."""
    return ModelList(models=[engine_of(request).info()])


@router.get(MODELS_PATH + "/{name}", response_model_exclude_none=True, responses=_REFUSALS)
async def model(name: str, request: Request) -> ModelInfo:
    """The model of this name."""
    engine = engine_of(request)
    if not engine.serves(name):
        raise RequestError(
            ErrorCode.MODEL_NOT_FOUND, f"this service has no model {name!r}; its model is {engine.name!r}"
        )
    return engine.info()
