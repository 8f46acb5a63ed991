"""Bearer keys, in a header or before the path. A key never reaches a log: it is compared and forgotten."""

from __future__ import annotations

import secrets
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.types import Scope

from redline.wire import ErrorCode
from redline_service.errors import RequestError
from redline_service.settings import ServiceSettings

# http://host:8000/key/KEY/get_reward, for callers that cannot send headers
KEY_PREFIX = b"/key/"


def take_key_off_path(scope: Scope) -> None:
    """Make ``/key/KEY/rest`` a request for ``/rest`` with KEY as its bearer token, before any path is logged."""
    raw = scope.get("raw_path") or scope["path"].encode()
    if not raw.startswith(KEY_PREFIX):
        return
    key, slash, rest = raw[len(KEY_PREFIX) :].partition(b"/")
    scope["raw_path"] = slash + rest or b"/"
    scope["path"] = unquote_to_bytes(scope["raw_path"]).decode(errors="replace")
    others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
    scope["headers"] = [*others, (b"authorization", b"Bearer " + unquote_to_bytes(key))]


async def require_key(request: Request) -> None:
    """A FastAPI dependency; raises RequestError UNAUTHORIZED where keys are set and none of them was sent."""
    settings: ServiceSettings = request.app.state.settings
    if not settings.keys:
        return
    scheme, _, sent = request.headers.get("Authorization", "").partition(" ")
    given = sent.strip().encode("latin-1")  # the bytes that came
    is_known = [secrets.compare_digest(key.get_secret_value().encode(), given) for key in settings.keys]
    if scheme.lower() != "bearer" or not any(is_known):
        raise RequestError(
            ErrorCode.UNAUTHORIZED, "this service wants a key: send 'Authorization: Bearer KEY', or ask below /key/KEY"
        )
