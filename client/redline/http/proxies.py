"""Proxies and certificates from the environment (``http_proxy``, ``all_proxy``, ``no_proxy``, ``SSL_CERT_FILE``,
``SSL_CERT_DIR``).

They are used as httpx does, except that loopback addresses never go through a proxy, which would connect to itself.
An unusable value is a ConfigurationError that names the variable.
"""

from __future__ import annotations

import errno
import os
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx

from redline.errors import ConfigurationError
from redline.http.url_redaction import without_secrets
from redline.text.printable import one_line


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
    """The arguments of an httpx client for ``url``: its certificates, and no proxies for loopback addresses.

    Raises:
        ConfigurationError: the environment names certificates that cannot be used.
    """
    return {"trust_env": not is_loopback(url.host), "verify": _ssl_context()}


def _ssl_context() -> ssl.SSLContext:
    file, folders = os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR")
    try:
        if file:
            if Path(file).exists() and not Path(file).is_file():  # reading a pipe would block
                raise OSError(errno.EINVAL, "not a regular file")
        elif folders:
            for folder in filter(None, folders.split(os.pathsep)):
                next(Path(folder).iterdir(), None)
        return httpx.create_ssl_context()
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        names = ("SSLKEYLOGFILE", "SSL_CERT_FILE", "SSL_CERT_DIR")
        set_names = [name for name in names if os.environ.get(name)]
        if not set_names:
            raise ConfigurationError(f"TLS cannot be set up: {one_line(str(error))}") from error
        is_key_log = isinstance(error, OSError) and error.filename == os.environ.get("SSLKEYLOGFILE")
        name = set_names[0] if is_key_log or len(set_names) == 1 else set_names[-2 if file and folders else -1]
        reason = "it has no readable certificates"
        if isinstance(error, OSError) and not isinstance(error, ssl.SSLError) and error.strerror:
            reason = error.strerror
        raise ConfigurationError(f"{name} is {os.environ[name]!r}, which cannot be used: {reason}") from error


def proxy_for(url: str) -> str | None:
    """The proxy from the environment for requests to ``url``, without its credentials; None if there is none."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if is_loopback(host) or proxy_bypass(host):
        return None
    proxies = getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy:
        return None
    scheme, separator, rest = proxy.rpartition("://")
    return scheme + separator + rest.rpartition("@")[2]


@contextmanager
def readable_proxy_errors() -> Iterator[None]:
    """Turns errors about the environment's proxies into ConfigurationError while an httpx client is constructed."""
    try:
        yield
    except ImportError as error:  # httpx needs socksio for SOCKS proxies
        raise ConfigurationError(
            "the environment names a SOCKS proxy (all_proxy, http_proxy or https_proxy), which needs httpx[socks]: "
            "pip install 'httpx[socks]', or list the service's host in no_proxy"
        ) from error
    except (ValueError, httpx.InvalidURL):
        # the error and its cause are not shown: they may contain the proxy's password
        raise ConfigurationError(f"the environment names a proxy that cannot be used: {_unusable_proxy()}") from None


def _unusable_proxy() -> str:
    """The proxy variable that httpx cannot use, without credentials."""
    for scheme, value in getproxies().items():
        if scheme in {"http", "https", "all"}:
            try:
                httpx.Proxy(value if "://" in value else f"http://{value}")
            except (ValueError, httpx.InvalidURL):
                return f"{scheme}_proxy is {without_secrets(value)!r}"
    return "check http_proxy, https_proxy, all_proxy and no_proxy"
