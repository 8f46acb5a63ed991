"""Bearer keys, in a header or before the path. A key is compared and forgotten; see ``logs`` for what is logged."""

from __future__ import annotations

import secrets
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.types import Scope

from redline.wire import ErrorCode
from redline_service.errors import RequestError
from redline_service.settings import ServiceSettings


def take_key_off_path(scope: Scope) -> None:
    """Make ``/key/KEY/rest`` a request for ``/rest`` with KEY as its bearer token.

    For callers that cannot send headers. Slashes too many, as joined addresses have them, change nothing.
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    first, slash, rest = raw.lstrip(b"/").partition(b"/")
    if unquote_to_bytes(first).lower() != b"key":
        return
    key, slash, rest = rest.lstrip(b"/").partition(b"/")
    scope["raw_path"] = slash + rest.lstrip(b"/") or b"/"
    scope["path"] = unquote_to_bytes(scope["raw_path"]).decode(errors="replace")
    others = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
    scope["headers"] = [*others, (b"authorization", b"Bearer " + unquote_to_bytes(key))]


def key_number(settings: ServiceSettings, authorization: bytes) -> int | None:
    """Which of the keys the bytes of an Authorization header hold, however they spell it; None for none of them."""
    scheme, _, sent = authorization.partition(b" ")
    is_known = [secrets.compare_digest(key.get_secret_value().encode(), sent.strip()) for key in settings.keys]
    return is_known.index(True) if scheme.lower() == b"bearer" and any(is_known) else None


def is_authorized(settings: ServiceSettings, authorization: bytes) -> bool:
    """Whether the bytes of an Authorization header hold one of the keys, or no keys are set."""
    return not settings.keys or key_number(settings, authorization) is not None


def check_key(request: Request) -> None:
    """Looks at the headers alone. Raises RequestError UNAUTHORIZED where keys are set and none of them was sent."""
    settings: ServiceSettings = request.app.state.settings
    if not is_authorized(settings, request.headers.get("Authorization", "").encode("latin-1")):
        raise RequestError(
            ErrorCode.UNAUTHORIZED, "this service wants a key: send 'Authorization: Bearer KEY', or ask below /key/KEY"
        )
