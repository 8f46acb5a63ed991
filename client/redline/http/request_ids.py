"""Which request an answer belongs to: every request has an id of its own, and a service gives it back.

On a kept connection an answer is the answer to the request before it by position alone. A server or a proxy that sends
two answers to one request, or a late one to a request that was given up, shifts all that follow by one. So each request
carries an ``X-Request-Id`` that no other has, and an answer with the id of another request is refused.

An answer without an id is let through (a proxy's own error page has none, nor has a simple stand-in for a service), and
so is one with an id in another's form, until this server has given back an id once: some proxies put their own id in
the place of the caller's. The ids of the items (``redline.http.exchange``) are checked all the same.
"""

from __future__ import annotations

import secrets
from typing import Any

import httpx

from redline.errors import AnswerMismatchError
from redline.wire import REQUEST_ID_HEADER

_PREFIX = "redline-"
_SHOWN = 80


class RequestIds:
    """The request ids of one client. Thread-safe."""

    def __init__(self) -> None:
        self._is_echoed = False

    def new(self) -> str:
        """An id that no other request has: 128 random bits."""
        return _PREFIX + secrets.token_hex(16)

    def check(self, response: httpx.Response) -> None:
        """To be called before the body is read: a connection whose answer is left unread is not used again.

        Raises:
            AnswerMismatchError: ``response`` is the answer to another request.
        """
        sent = response.request.headers.get(REQUEST_ID_HEADER)
        answered = [part.strip() for part in response.headers.get(REQUEST_ID_HEADER, "").split(",") if part.strip()]
        if sent in answered:
            self._is_echoed = True
            return
        if answered and (self._is_echoed or any(part.startswith(_PREFIX) for part in answered)):
            raise AnswerMismatchError(
                f"{response.request.url} answered another request: the answer has {REQUEST_ID_HEADER} "
                f"{answered[0][:_SHOWN]!r} where {sent!r} was sent"
            )


def surplus_connection(response: httpx.Response) -> Any:
    """The connection that ``response`` came on, if more was received than this answer, whose body has been read.

    It must not carry another request: the rest would be taken for the answer. None where all is well, and where it
    cannot be seen: httpx has no public way to it.

    Returns:
        An HTTP/1.1 connection of httpcore's, to be closed, or None.
    """
    connection: Any = response.stream
    for name in ("_stream", "_httpcore_stream", "_stream", "_connection"):
        connection = getattr(connection, name, None)
    trailing = getattr(getattr(connection, "_h11_state", None), "trailing_data", (b"", False))
    return connection if trailing[0] else None
