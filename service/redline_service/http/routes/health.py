"""Liveness, readiness, Prometheus metrics and a start page. They need no key, because probes cannot send one."""

from __future__ import annotations

from html import escape

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from redline.wire import HEALTH_PATH, LIVE_PATHS, METRICS_PATH, READY_PATH, READY_PATHS, ErrorResponse
from redline_service.http.admission import engine_of
from redline_service.metrics import Metrics
from redline_service.settings import ServiceSettings

router = APIRouter()


async def live() -> dict[str, str]:
    """The process responds."""
    return {"status": "ok"}


async def ready(request: Request) -> dict[str, str]:
    """The model is loaded and has scored an item; status 503 before that."""
    engine = engine_of(request)
    return {"status": "ready", "model": engine.name, "digest": engine.bundle.digest}


for _path in LIVE_PATHS:
    router.get(_path, include_in_schema=_path == HEALTH_PATH)(live)
    router.head(_path, include_in_schema=False)(live)
for _path in READY_PATHS:
    router.get(_path, include_in_schema=_path == READY_PATH, responses={503: {"model": ErrorResponse}})(ready)
    router.head(_path, include_in_schema=False)(ready)


@router.get(METRICS_PATH, response_class=Response)
async def metrics(request: Request) -> Response:
    """Counters and histograms in the Prometheus text format."""
    all_metrics: Metrics = request.app.state.metrics
    return Response(all_metrics.export(), media_type="text/plain; version=0.0.4")


@router.head("/", include_in_schema=False)
@router.get("/", response_class=HTMLResponse, include_in_schema=False)
async def index(request: Request) -> HTMLResponse:
    """A start page. It names the model only if callers need no key."""
    settings: ServiceSettings = request.app.state.settings
    engine = getattr(request.app.state, "engine", None)
    if settings.keys:
        model = "served to callers with a key"
    elif engine is None or not engine.has_scored:
        model = "being loaded"
    else:
        model = f"{escape(engine.name)} ({escape(engine.info().kind)}, {escape(engine.bundle.digest[:19])})"
    return HTMLResponse(_PAGE.format(version=escape(request.app.version), model=model))


_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>Redline</title>
<style>body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 40em; margin: 3em auto; padding: 0 1em }}</style>
</head>
<body>
<h1>Redline {version}</h1>
<p>A reward model service for RLHF: one reward for every token of a response.</p>
<p>Model: {model}</p>
<ul>
<li><a href="docs">API documentation</a> (<a href="openapi.json">OpenAPI</a>)</li>
<li><a href="v1/models">Models</a>: limits, defaults, calibration</li>
<li><a href="health/ready">Readiness</a> and <a href="metrics">metrics</a></li>
</ul>
</body>
</html>
"""
