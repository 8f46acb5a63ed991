"""The FastAPI application, put together from its parts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from redline.wire import ErrorCode
from redline_model.bundle import Bundle
from redline_model.errors import UnsupportedError
from redline_model.scorers import reading_key, reading_of
from redline_service.engine import Engine
from redline_service.errors import RequestError, describe_validation
from redline_service.metrics import Metrics
from redline_service.middleware import RequestMiddleware
from redline_service.permits import Permits
from redline_service.routes import correct, dropins, health, models, score
from redline_service.settings import ServiceSettings

_STATUS_CODES = {
    401: ErrorCode.UNAUTHORIZED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.REQUEST_TOO_LARGE,
}


def load_bundle(settings: ServiceSettings) -> Bundle:
    """The bundle that ``settings`` ask for. Raises BundleError, UnsupportedError."""
    bundle = Bundle.load(
        settings.bundle,
        settings.placement,
        max_tokens=settings.max_tokens,
        prefix_cache_tokens=settings.prefix_cache_tokens,
    )
    reading = reading_key(bundle.scorer, reading_of(bundle.scorer))
    if settings.scalar == "calibrated" and reading not in bundle.manifest.calibration:
        raise UnsupportedError(f"a calibrated scalar was asked for, and the bundle was not calibrated for {reading}")
    return bundle


def create_app(settings: ServiceSettings, bundle: Bundle | None = None) -> FastAPI:
    """The application around one bundle.

    Args:
        bundle: a loaded bundle; None loads ``settings.bundle`` when the application starts.

    Raises (at start-up):
        BundleError, UnsupportedError: the bundle cannot be loaded.
    """
    metrics = Metrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loaded = bundle
        if loaded is None:
            loaded = await asyncio.to_thread(load_bundle, settings)
        engine = Engine(
            loaded,
            name=settings.name,
            max_items=settings.max_items,
            max_batch_tokens=settings.max_batch_tokens,
            max_queued_tokens=settings.max_queued_tokens,
            on_batch=metrics.count_batch,
        )
        metrics.watch_queue(lambda: engine.batcher.queued_items, lambda: engine.batcher.queued_tokens)
        metrics.model.labels(settings.name, loaded.digest, loaded.scorer.kind).set(1)
        try:
            await engine.start()
            app.state.engine = engine
            yield
        finally:
            await engine.stop()

    app = FastAPI(
        title="Redline",
        summary="Token rewards for RLHF over HTTP",
        version=_own_version(),
        lifespan=lifespan,
        redirect_slashes=False,  # the middleware takes them off; a redirect would lose a key before the path
    )
    app.state.settings = settings
    app.state.metrics = metrics
    app.state.permits = Permits(settings.max_queued_requests)
    app.include_router(score.router)
    app.include_router(correct.router)
    app.include_router(dropins.router)
    app.include_router(models.router)
    app.include_router(health.router)
    app.add_middleware(RequestMiddleware, metrics=metrics, max_body_bytes=settings.max_body_bytes)
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Every error leaves in the one shape of the wire."""

    def answer(error: RequestError) -> Response:
        headers = {} if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
        return JSONResponse(error.response().model_dump(), error.status, headers)

    @app.exception_handler(RequestError)
    async def refused(request: Request, error: RequestError) -> Response:
        return answer(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        return answer(RequestError(ErrorCode.INVALID_REQUEST, describe_validation(error.errors())))

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _STATUS_CODES.get(error.status_code, ErrorCode.INVALID_REQUEST)
        return answer(RequestError(code, str(error.detail)))

    @app.exception_handler(ClientDisconnect)
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=499)  # nobody reads it; the access log and the metrics do


def _own_version() -> str:
    try:
        return version("redline-rm")
    except PackageNotFoundError:
        return "unknown"
