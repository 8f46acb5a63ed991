"""A service in the test's process, used through its HTTP interface."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import httpx
import pytest

from redline_model.bundle.bundle import Bundle
from redline_service.http.app import create_app
from redline_service.settings import ServiceSettings

T = TypeVar("T")
Work = Callable[[httpx.AsyncClient], Awaitable[T]]


def with_service(bundle: Bundle, work: Work[T], **settings: Any) -> T:
    """Run ``work`` with an HTTP client of an application around ``bundle``, including start-up and shutdown."""

    async def run() -> T:
        app = create_app(ServiceSettings(bundle="unused", **settings), bundle)
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
            async with httpx.AsyncClient(transport=transport, base_url="http://service") as http:
                return await work(http)

    return asyncio.run(run())


@pytest.fixture
def ask(bundle: Bundle) -> Callable[..., httpx.Response]:
    """Sends one request to a service around the seq2seq bundle, which is started with the given settings."""

    def send(method: str, path: str, *, settings: dict[str, Any] | None = None, **request: Any) -> httpx.Response:
        async def work(http: httpx.AsyncClient) -> httpx.Response:
            return await http.request(method, path, **request)

        return with_service(bundle, work, **(settings or {}))

    return send
