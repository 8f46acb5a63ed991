"""Alive, ready, and what Prometheus reads. Unguarded: probes carry no keys."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from redline.wire import HEALTH_PATH, METRICS_PATH, READY_PATH, ErrorCode, ErrorResponse
from redline_service.errors import RequestError
from redline_service.metrics import Metrics

router = APIRouter()


@router.get(HEALTH_PATH)
async def alive() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@router.get(READY_PATH, responses={503: {"model": ErrorResponse}})
async def ready(request: Request) -> dict[str, str]:
    """A model is loaded and has scored."""
    engine = getattr(request.app.state, "engine", None)
    if engine is None or not engine.has_scored:
        raise RequestError(ErrorCode.NOT_READY, "the model is being loaded", retry_after_s=1)
    return {"status": "ready", "model": engine.name, "digest": engine.bundle.digest}


@router.get(METRICS_PATH, response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and histograms in the Prometheus text format."""
    shown: Metrics = request.app.state.metrics
    return Response(shown.text(), media_type="text/plain; version=0.0.4")
