"""Proxies of the environment (``http_proxy``, ``all_proxy``, ``no_proxy``): used as httpx uses them, but never for
loopback addresses, which a proxy on another machine would take for its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from redline.errors import ProtocolError


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine: ``localhost``, 127.0.0.0/8, ::1, or the unspecified address."""
    name = host.rstrip(".").lower()
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        address = ip_address(name)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def proxy_settings(url: httpx.URL) -> dict[str, Any]:
    """The arguments of an httpx client for ``url`` that keep proxies away from loopback addresses."""
    if not is_loopback(url.host):
        return {}
    # without the environment httpx would not read SSL_CERT_FILE either
    return {"trust_env": False, "verify": httpx.create_ssl_context()}


def proxy_of(url: str) -> str | None:
    """The proxy of the environment that requests to ``url`` go through, without its credentials; None for none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    found = proxies.get(parts.scheme) or proxies.get("all")
    if not found:
        return None
    scheme, separator, rest = found.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


@contextmanager
def readable_proxy_errors() -> Iterator[None]:
    """While an httpx client is made: what is wrong with the environment's proxies, as ProtocolError."""
    try:
        yield
    except ImportError as error:  # httpx needs socksio for SOCKS proxies
        raise ProtocolError(
            "the environment names a SOCKS proxy (all_proxy, http_proxy or https_proxy), which needs httpx[socks]: "
            "pip install 'httpx[socks]', or list the service's host in no_proxy"
        ) from error
    except (ValueError, httpx.InvalidURL) as error:
        raise ProtocolError(f"the environment names a proxy that cannot be used: {error}") from error
