"""Running the service: one process, one model, SIGTERM drains."""

from __future__ import annotations

import logging
import signal
import socket
import sys

import uvicorn

from redline_service.app import create_app, load_bundle
from redline_service.auth import KeyFilter
from redline_service.settings import ServiceSettings


def bind(host: str, port: int) -> socket.socket:
    """A listening socket, before the model is loaded, so that a taken port fails at once. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"{error.strerror}: {host}:{port}") from error
    return listener


def serve(settings: ServiceSettings) -> None:
    """Load the bundle and serve it until a signal. Requests under way are answered first.

    Raises:
        OSError: the address cannot be bound.
        BundleError, UnsupportedError: the bundle cannot be served.
    """
    listener = bind(settings.host, settings.port)
    with listener:
        bundle = load_bundle(settings)
        server = uvicorn.Server(
            uvicorn.Config(
                create_app(settings, bundle),
                log_level=settings.log_level,
                access_log=settings.log_level == "debug",
                timeout_graceful_shutdown=settings.drain_s,
                timeout_keep_alive=75,
                backlog=4096,
            )
        )
        if settings.keys:
            strike = KeyFilter([key.get_secret_value() for key in settings.keys])
            for name in ("uvicorn.access", "uvicorn.error"):
                logging.getLogger(name).addFilter(strike)
        port = listener.getsockname()[1]
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        info = f"{bundle.scorer.kind} model {settings.bundle} ({bundle.digest[:19]})"
        print(f"serving {info} on http://{host}:{port}", file=sys.stderr, flush=True)
        # uvicorn drains at SIGTERM and then raises it again; a drained service has ended well, with status 0
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        server.run(sockets=[listener])
