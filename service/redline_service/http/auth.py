"""Bearer keys, sent in a header or before the path. Keys are never stored or logged (see ``logs``)."""

from __future__ import annotations

import secrets
from urllib.parse import unquote_to_bytes

from fastapi import Request
from starlette.types import Scope

from redline.wire import ErrorCode
from redline_service.errors import RequestError
from redline_service.settings import ServiceSettings


def move_key_to_header(scope: Scope) -> None:
    """Change a request for ``/key/KEY/rest`` to one for ``/rest`` with KEY as its bearer token.

    This is for callers that cannot send headers. Repeated slashes, as in carelessly joined URLs, are ignored.
    """
    raw = scope.get("raw_path") or scope["path"].encode()
    first, slash, rest = raw.lstrip(b"/").partition(b"/")
    if unquote_to_bytes(first).lower() != b"key":
        return
    key, slash, rest = rest.lstrip(b"/").partition(b"/")
    scope["raw_path"] = slash + rest.lstrip(b"/") or b"/"
    scope["path"] = unquote_to_bytes(scope["raw_path"]).decode(errors="replace")
    other_headers = [(name, value) for name, value in scope["headers"] if name != b"authorization"]
    scope["headers"] = [*other_headers, (b"authorization", b"Bearer " + unquote_to_bytes(key))]


def key_index(settings: ServiceSettings, authorization: bytes) -> int | None:
    """The index in ``settings.keys`` of the key in an Authorization header; None if it has none of them."""
    scheme, _, sent_key = authorization.partition(b" ")
    is_equal = [secrets.compare_digest(key.get_secret_value().encode(), sent_key.strip()) for key in settings.keys]
    return is_equal.index(True) if scheme.lower() == b"bearer" and any(is_equal) else None


def is_authorized(settings: ServiceSettings, authorization: bytes) -> bool:
    """Whether an Authorization header has one of the keys, or no keys are set."""
    return not settings.keys or key_index(settings, authorization) is not None


def check_key(request: Request) -> None:
    """Check the key of a request. Raises RequestError UNAUTHORIZED if keys are set and none of them was sent."""
    settings: ServiceSettings = request.app.state.settings
    if not is_authorized(settings, request.headers.get("Authorization", "").encode("latin-1")):
        raise RequestError(
            ErrorCode.UNAUTHORIZED,
            "this service requires a key: send 'Authorization: Bearer KEY', or put /key/KEY before the path",
        )
