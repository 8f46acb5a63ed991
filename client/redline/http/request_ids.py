"""Request ids, which detect answers that belong to another request.

On a kept-alive connection only the order assigns answers to requests. If a server or proxy sends two answers to one
request, or a late answer to an abandoned request, all later answers are shifted by one. So each request has a unique
``X-Request-Id``, which the service returns, and an answer with the id of another request is refused.

An answer without an id is accepted (error pages of proxies have none). An id in another format is accepted until this
server has returned one of ours: some proxies replace the caller's id. The ids of the items (``redline.http.exchange``)
are checked in any case.
"""

from __future__ import annotations

import secrets
from typing import Any

import httpx

from redline.errors import AnswerMismatchError
from redline.wire import REQUEST_ID_HEADER

_PREFIX = "redline-"
_MAX_ID_CHARACTERS = 80


class RequestIds:
    """The request ids of one client. Thread-safe."""

    def __init__(self) -> None:
        self._is_echoed = False

    def new(self) -> str:
        """A unique request id: 128 random bits."""
        return _PREFIX + secrets.token_hex(16)

    def check(self, response: httpx.Response) -> None:
        """Check the id of an answer, before its body is read: then a connection with a wrong answer is not reused.

        Raises:
            AnswerMismatchError: ``response`` is the answer to another request.
        """
        sent = response.request.headers.get(REQUEST_ID_HEADER)
        returned = [part.strip() for part in response.headers.get(REQUEST_ID_HEADER, "").split(",") if part.strip()]
        if sent in returned:
            self._is_echoed = True
            return
        if returned and (self._is_echoed or any(part.startswith(_PREFIX) for part in returned)):
            raise AnswerMismatchError(
                f"{response.request.url} answered another request: the answer has {REQUEST_ID_HEADER} "
                f"{returned[0][:_MAX_ID_CHARACTERS]!r}, but {sent!r} was sent"
            )


def connection_with_surplus(response: httpx.Response) -> Any:
    """The connection of ``response``, whose body has been read, if more data than this answer was received.

    It must not be reused: the surplus would be parsed as the next answer. None if there is no surplus or if it cannot
    be determined; httpx has no public interface for it.

    Returns:
        An HTTP/1.1 connection of httpcore's, which the caller closes, or None.
    """
    connection: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection"):
        connection = getattr(connection, name, None)
    trailing = getattr(getattr(connection, "_h11_state", None), "trailing_data", (b"", False))
    return connection if trailing[0] else None
