"""Reads, parses and validates request bodies in bounded time and memory."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

from fastapi import Request
from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from redline.wire import ErrorCode
from redline_service.errors import RequestError, describe_validation
from redline_service.http.limiter import BodyReservation

# Fields of all request formats whose lists have one element per item.
_ITEM_FIELDS = ("items", "query", "prompts", "responses", "messages", "input", "text", "input_ids")
# In these a list of numbers is one item.
_ID_FIELDS = ("input", "input_ids")
# An escape that may be a lone surrogate: JSON can express it, but it is not valid Unicode text.
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")
_UTF8_BOM = b"\xef\xbb\xbf"


async def read_body(request: Request, reservation: BodyReservation, *, max_bytes: int, timeout_s: float) -> bytes:
    """Read the whole body.

    Args:
        reservation: memory of this body; it grows as the body arrives.

    Raises:
        OverloadedError: the memory for bodies is used up.
        RequestError: REQUEST_TOO_LARGE, raised as early as possible; BODY_TIMEOUT, the body did not arrive in time;
            INVALID_REQUEST, its content type is not JSON.
        ClientDisconnect: the caller has disconnected.
    """
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        raise RequestError(ErrorCode.INVALID_REQUEST, "the body must be JSON, with Content-Type: application/json")
    too_large = RequestError(ErrorCode.REQUEST_TOO_LARGE, f"the body is larger than {max_bytes} bytes")
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and (len(declared) > 18 or int(declared) > max_bytes):
        raise too_large
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                if len(body) + len(chunk) > max_bytes:
                    raise too_large
                reservation.add(len(chunk))
                body += chunk
    except TimeoutError as error:
        reason = f"the body did not arrive within {timeout_s:g} s"
        raise RequestError(ErrorCode.BODY_TIMEOUT, reason) from error
    return bytes(body)


def parse_body(body: bytes, adapter: TypeAdapter[Any], max_items: int) -> Any:
    """Parse and validate a JSON body. The number of items is checked before any of them is validated.

    Raises:
        RequestError: INVALID_REQUEST, the body is not JSON or not valid; REQUEST_TOO_LARGE, it has too many items.
    """
    body = body.removeprefix(_UTF8_BOM)
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:  # also if nesting or numbers exceed the parser's limits
        data = _load_with_surrogates(body, f"the body is not JSON: {error}")
    if isinstance(data, dict):
        for name in _ITEM_FIELDS:
            items = data.get(name)
            is_one_item = name in _ID_FIELDS and isinstance(items, list) and bool(items) and isinstance(items[0], int)
            if isinstance(items, list) and len(items) > max_items and not is_one_item:
                reason = f"the request has {len(items)} {name}; at most {max_items} are allowed"
                raise RequestError(ErrorCode.REQUEST_TOO_LARGE, reason)
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise RequestError(ErrorCode.INVALID_REQUEST, describe_validation(error)) from error


def _load_with_surrogates(body: bytes, reason: str) -> Any:
    """Parse a JSON body that contains lone surrogates.

    Validation refuses them in every text that is scored, and names the field; other data of the caller may contain
    them. Raises RequestError INVALID_REQUEST with ``reason`` if the body is invalid for another reason.
    """
    if _SURROGATE.search(body):
        try:
            from_json(_SURROGATE.sub(rb"\\ufff", body), allow_inf_nan=False)  # checks limits on nesting and numbers
            return json.loads(body)
        except (ValueError, RecursionError):
            pass
    raise RequestError(ErrorCode.INVALID_REQUEST, reason)
