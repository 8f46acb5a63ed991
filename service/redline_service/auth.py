"""Bearer keys, in a header or before the path. A key never reaches a log: it is compared and forgotten."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from urllib.parse import quote, unquote_to_bytes

from fastapi import Request
from starlette.types import Scope

from redline.wire import ErrorCode
from redline_service.errors import RequestError
from redline_service.settings import ServiceSettings


def take_key_off_path(scope: Scope) -> None:
    """Make ``/key/KEY/rest`` a request for ``/rest`` with KEY as its bearer token, before any path is logged.

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


class KeyFilter(logging.Filter):
    """Strikes keys out of log records, wherever in an address a caller may have put them."""

    def __init__(self, keys: Sequence[str]) -> None:
        super().__init__()
        self._keys = sorted({form for key in keys for form in (key, quote(key), quote(key, safe=""))}, key=len)[::-1]

    def filter(self, record: logging.LogRecord) -> bool:
        """The record, always, without keys in its message and arguments."""
        record.msg = self._struck(record.msg)
        if isinstance(record.args, tuple):
            record.args = tuple(self._struck(one) for one in record.args)
        return True

    def _struck(self, told: object) -> object:
        if isinstance(told, str):
            for key in self._keys:
                told = told.replace(key, "***")
        return told


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
