"""``GET /v1/models``: what is served, its limits and its defaults."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from redline.wire import MODELS_PATH, ErrorCode, ErrorResponse, ModelInfo, ModelList
from redline_service.auth import require_key
from redline_service.engine import Engine
from redline_service.errors import RequestError

router = APIRouter(dependencies=[Depends(require_key)])


@router.get(MODELS_PATH, response_model_exclude_none=True)
async def models(request: Request) -> ModelList:
    """Every model served."""
    engine: Engine = request.app.state.engine
    return ModelList(models=[engine.info()])


@router.get(MODELS_PATH + "/{name}", response_model_exclude_none=True, responses={404: {"model": ErrorResponse}})
async def model(name: str, request: Request) -> ModelInfo:
    """One model."""
    engine: Engine = request.app.state.engine
    if not engine.knows(name):
        raise RequestError(ErrorCode.MODEL_NOT_FOUND, f"no model {name!r} is served here; there is {engine.name!r}")
    return engine.info()
