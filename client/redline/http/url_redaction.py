"""Removes passwords and keys from URLs before they are shown or logged."""

from __future__ import annotations

import re
from urllib.parse import unquote

import httpx

HIDDEN = "***"
_QUERY = re.compile(r"\?[^#]*")
_FRAGMENT = re.compile(r"#.*", re.DOTALL)


def without_secrets(url: httpx.URL | str) -> str:
    """``url`` with ``***`` for its user and password, the key of ``/key/KEY/``, its query and its fragment.

    Accepts malformed URLs too; takes linear time.
    """
    text = httpx.URL.__str__(url) if isinstance(url, httpx.URL) else url
    text = _FRAGMENT.sub(f"#{HIDDEN}", text, count=1)
    text = _QUERY.sub(f"?{HIDDEN}", text, count=1)
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "", text
    _, at, rest = rest.rpartition("@")  # an unquoted password may contain / or @
    segments = rest.split("/")
    is_key = False
    for position, segment in enumerate(segments):
        if is_key and segment:
            segments[position], is_key = HIDDEN, False
        elif position and unquote(segment).strip().lower() == "key":
            is_key = True
    return scheme + separator + (f"{HIDDEN}@" if at else "") + "/".join(segments)


class RedactedURL(httpx.URL):
    """A URL whose text form has no secrets: httpx logs the URL of every request."""

    def __str__(self) -> str:
        return without_secrets(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self)!r})"
