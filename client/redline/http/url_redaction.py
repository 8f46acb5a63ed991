"""Addresses fit to be shown and logged: without passwords, and without the keys that stand in paths and queries."""

from __future__ import annotations

import re
from urllib.parse import unquote

import httpx

HIDDEN = "***"
_QUERY = re.compile(r"\?[^#]*")
_FRAGMENT = re.compile(r"#.*", re.DOTALL)


def without_secrets(url: httpx.URL | str) -> str:
    """``url`` with ``***`` for its user and password, the key of ``/key/KEY/``, its query and its fragment.

    For any text that is meant as one address, well formed or not; in time linear in its length.
    """
    text = httpx.URL.__str__(url) if isinstance(url, httpx.URL) else url
    text = _FRAGMENT.sub(f"#{HIDDEN}", text, count=1)
    text = _QUERY.sub(f"?{HIDDEN}", text, count=1)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    _, at, rest = rest.rpartition("@")  # a password may hold / or @ where somebody forgot to quote it
    segments = rest.split("/")
    is_key = False
    for position, segment in enumerate(segments):
        if is_key and segment:
            segments[position], is_key = HIDDEN, False
        elif position and unquote(segment).strip().lower() == "key":
            is_key = True
    return scheme + separator + (f"{HIDDEN}@" if at else "") + "/".join(segments)


class ShownURL(httpx.URL):
    """An address that is sent as it is, and shown without its secrets: httpx logs the address of every request."""

    def __str__(self) -> str:
        return without_secrets(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"
