"""Creates the FastAPI application: routes, middleware, error handlers, loading of the bundle."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.exceptions import HTTPException

from redline.version import installed_version
from redline.wire import ErrorCode
from redline_model.bundle.bundle import Bundle
from redline_model.errors import UnsupportedError
from redline_model.reward_spec import reward_spec, spec_key
from redline_service.engine import Engine
from redline_service.errors import RequestError
from redline_service.http.admission import ModelRoute
from redline_service.http.connections import Connections
from redline_service.http.error_responses import CALLER_ERRORS, error_response
from redline_service.http.limiter import BodyMemory, ConcurrencyLimiter
from redline_service.http.middleware import RequestMiddleware
from redline_service.http.routes import compat, correct, health, models, score
from redline_service.metrics import Metrics
from redline_service.scheduling.thread_pool import ThreadPool
from redline_service.settings import ServiceSettings

logger = logging.getLogger("redline.service")
# Bytes of all bodies that may be arriving at once; increased to four of the largest bodies if those are larger.
_BODY_MEMORY_BYTES = 256 * 2**20

_STATUS_CODES = {
    401: ErrorCode.UNAUTHORIZED,
    404: ErrorCode.NOT_FOUND,
    405: ErrorCode.METHOD_NOT_ALLOWED,
    413: ErrorCode.REQUEST_TOO_LARGE,
}


def load_bundle(settings: ServiceSettings) -> Bundle:
    """Load the bundle that ``settings`` name. Raises BundleError, UnsupportedError."""
    bundle = Bundle.load(
        settings.bundle,
        settings.load_options,
        max_tokens=settings.max_tokens,
        prefix_cache_tokens=settings.prefix_cache_tokens,
        prefix_cache_bytes=None if settings.prefix_cache_mib is None else settings.prefix_cache_mib * 2**20,
    )
    if bundle.load_options.cpu_precision is not None:
        logger.info("%s", bundle.load_options.cpu_precision)
    spec = spec_key(bundle.scorer, reward_spec(bundle.scorer))
    if settings.scalar == "calibrated" and spec not in bundle.manifest.calibration:
        raise UnsupportedError(f"scalar is 'calibrated', but the bundle has no calibration for {spec}")
    return bundle


def create_app(
    settings: ServiceSettings,
    bundle: Bundle | None = None,
    *,
    connections: Connections | None = None,
    on_loaded: Callable[[Bundle], None] = lambda bundle: None,
    on_failed: Callable[[Exception], None] | None = None,
) -> FastAPI:
    """The application around one bundle.

    Args:
        bundle: a loaded bundle. None: the application loads ``settings.bundle`` in the background after its start, and
            responds to requests for the model with status 503 (``not_ready``) until then.
        connections: connections whose time limits are enforced while the application runs.
        on_loaded: called when the model has scored its first item.
        on_failed: called with the error if the bundle cannot be loaded or cannot score; None: the error is logged.
    """
    metrics = Metrics()

    async def start(app: FastAPI, loaded: Bundle) -> None:
        engine = Engine(
            loaded,
            name=settings.name,
            max_items=settings.max_items,
            max_batch_tokens=settings.max_batch_tokens,
            max_queued_tokens=settings.max_queued_tokens,
            on_batch=metrics.count_batch,
        )
        app.state.engine = engine
        metrics.add_engine_gauges(engine)
        metrics.model.labels(settings.name, loaded.digest, loaded.scorer.kind).set(1)
        await engine.start()
        on_loaded(loaded)

    async def load(app: FastAPI) -> None:
        loader = ThreadPool(1, "redline-loader")
        try:
            await start(app, await loader.run(load_bundle, settings))
        except Exception as error:
            if on_failed is None:
                logger.error("the bundle cannot be served", exc_info=error)
            else:
                on_failed(error)
        finally:
            loader.stop(0.0)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        tasks = [asyncio.create_task(connections.sweep())] if connections is not None else []
        try:
            if bundle is None:
                tasks.append(asyncio.create_task(load(app)))
            else:
                await start(app, bundle)
            yield
        finally:
            for task in tasks:
                task.cancel()
                with suppress(asyncio.CancelledError):
                    await task
            engine: Engine | None = app.state.engine
            if engine is not None:
                await engine.stop()

    app = FastAPI(
        title="Redline",
        summary="Token rewards for RLHF over HTTP",
        version=installed_version(),
        lifespan=lifespan,
        redirect_slashes=False,  # the middleware removes them; a redirect would lose a key in the path
    )
    app.state.settings = settings
    app.state.engine = None
    app.state.metrics = metrics
    app.state.limiter = ConcurrencyLimiter(settings.max_queued_requests)
    app.state.body_memory = BodyMemory(max(_BODY_MEMORY_BYTES, 4 * settings.max_body_bytes))
    routers = (score.router, correct.router, compat.router, compat.session_router, models.router, health.router)
    for router in routers:
        app.include_router(router)
    model_routes = [route for router in routers for route in router.routes if isinstance(route, ModelRoute)]
    handlers = {route.path: route.get_route_handler() for route in model_routes}
    app.add_middleware(RequestMiddleware, metrics=metrics, handlers=handlers)
    _add_error_handlers(app)
    return app


def _add_error_handlers(app: FastAPI) -> None:
    """Give every error response the same JSON format."""

    async def caller_error(request: Request, error: Exception) -> Response:
        return error_response(error)

    for error_type in CALLER_ERRORS:
        app.add_exception_handler(error_type, caller_error)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        code = _STATUS_CODES.get(error.status_code, ErrorCode.INVALID_REQUEST)
        return error_response(RequestError(code, str(error.detail)))
