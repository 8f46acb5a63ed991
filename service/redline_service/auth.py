"""Bearer keys. A key never reaches a log: it is compared and forgotten."""

from __future__ import annotations

import secrets

from fastapi import Request

from redline.wire import ErrorCode
from redline_service.errors import RequestError
from redline_service.settings import ServiceSettings


async def require_key(request: Request) -> None:
    """A FastAPI dependency; raises RequestError UNAUTHORIZED where keys are set and none of them was sent."""
    settings: ServiceSettings = request.app.state.settings
    if not settings.keys:
        return
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    is_known = [secrets.compare_digest(key.get_secret_value().encode(), sent.strip().encode()) for key in settings.keys]
    if scheme.lower() != "bearer" or not any(is_known):
        raise RequestError(ErrorCode.UNAUTHORIZED, "this service wants a key: send 'Authorization: Bearer KEY'")
