"""A request body from the network to a checked object, in bounded time and memory."""

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
from redline_service.http.limiter import BodyShare

# The fields of all request forms in which a list has one element an item.
_ITEM_FIELDS = ("items", "query", "prompts", "responses", "messages", "input", "text", "input_ids")
# in these, a list of numbers is one item
_ID_FIELDS = ("input", "input_ids")
# an escape that may be half of a surrogate pair, which is no text, though JSON can spell it
_HALF_PAIR = re.compile(rb"\\u[dD][89a-fA-F]")
_UTF8_BOM = b"\xef\xbb\xbf"


async def read_body(request: Request, share: BodyShare, *, max_bytes: int, timeout_s: float) -> bytes:
    """The body, once all of it has arrived.

    Args:
        share: of the memory for bodies; it grows with the body.

    Raises:
        OverloadedError: there is no more memory for bodies.
        RequestError: REQUEST_TOO_LARGE, as soon as that is known; BODY_TIMEOUT, it did not arrive in time;
            INVALID_REQUEST, it is declared as something other than JSON.
        ClientDisconnect: the caller has gone.
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
                share.add(len(chunk))
                body += chunk
    except TimeoutError as error:
        reason = f"the body did not arrive within {timeout_s:g} s"
        raise RequestError(ErrorCode.BODY_TIMEOUT, reason) from error
    return bytes(body)


def parse_body(body: bytes, adapter: TypeAdapter[Any], max_items: int) -> Any:
    """``body`` as what ``adapter`` describes. The number of items is checked before any of them is looked at.

    Raises:
        RequestError: INVALID_REQUEST, it is not JSON or not of that form; REQUEST_TOO_LARGE, it has too many items.
    """
    body = body.removeprefix(_UTF8_BOM)
    try:
        data = from_json(body, allow_inf_nan=False)
    except ValueError as error:  # nesting and numbers that are out of bounds, too
        data = _with_half_pairs(body, f"the body is not JSON: {error}")
    if isinstance(data, dict):
        for name in _ITEM_FIELDS:
            items = data.get(name)
            is_one = name in _ID_FIELDS and isinstance(items, list) and bool(items) and isinstance(items[0], int)
            if isinstance(items, list) and len(items) > max_items and not is_one:
                reason = f"{len(items)} {name}; a request may hold {max_items}"
                raise RequestError(ErrorCode.REQUEST_TOO_LARGE, reason)
    try:
        return adapter.validate_python(data)
    except ValidationError as error:
        raise RequestError(ErrorCode.INVALID_REQUEST, describe_validation(error)) from error


def _with_half_pairs(body: bytes, reason: str) -> Any:
    """``body`` with the halves of surrogate pairs that it holds.

    Validation refuses them by name in every text that is read; a caller's other data may hold them. Raises RequestError
    INVALID_REQUEST with ``reason`` where they are not what is wrong with the body.
    """
    if _HALF_PAIR.search(body):
        try:
            from_json(_HALF_PAIR.sub(rb"\\ufff", body), allow_inf_nan=False)  # for its limits on nesting and numbers
            return json.loads(body)
        except (ValueError, RecursionError):
            pass
    raise RequestError(ErrorCode.INVALID_REQUEST, reason)
