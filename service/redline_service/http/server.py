"""Runs the service: one process with one model. On SIGTERM it answers the requests in progress and ends."""

from __future__ import annotations

import gc
import logging.config
import math
import os
import signal
import socket
import sys
import threading
from typing import Any

import uvicorn

from redline_model.bundle.bundle import Bundle
from redline_service.http.app import create_app
from redline_service.http.connections import ConnectionLimits, Connections
from redline_service.http.logs import logging_config
from redline_service.settings import ServiceSettings

_BACKLOG = 4096
# Connections that asyncio accepts at once; the limit on connections counts none of them before all are accepted.
_ACCEPTED_AT_ONCE = 32
_SWITCH_INTERVAL_S = 0.0005


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, which reserves the port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only if the protocol is given. Without TCP_NODELAY small responses on a kept connection
    # wait for the client's delayed acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(_BACKLOG)
    except (OSError, OverflowError) as error:
        listener.close()
        raise OSError(getattr(error, "errno", None), f"{getattr(error, 'strerror', error)}: {host}:{port}") from error
    return listener


class _Server(uvicorn.Server):
    """uvicorn's server, with a longer queue of connections that the operating system holds until they are accepted."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)  # asyncio has set it to the number of connections that it accepts at once


def serve(settings: ServiceSettings) -> None:
    """Serve a bundle until a signal arrives. Probes are answered while the bundle is being loaded.

    After the signal, requests in progress are answered for at most ``settings.drain_s``. The process does not wait
    longer for a forward pass or a text that is being tokenised.

    Raises:
        OSError: the address cannot be bound.
        BundleError, UnsupportedError: the bundle cannot be served.
        KeyboardInterrupt: SIGINT, after draining.
    """
    keys = [key.get_secret_value() for key in settings.keys]
    logging.config.dictConfig(logging_config(settings.log_level, keys))
    with listen(settings.host, settings.port) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{listener.getsockname()[1]}"
        failure: list[Exception] = []

        def on_loaded(bundle: Bundle) -> None:
            # A garbage collection that visits the objects of torch and the model takes a fifth of a second. Under load
            # there would be many of them, so these objects are excluded.
            gc.collect()
            gc.freeze()
            info = f"{bundle.scorer.kind} model {settings.bundle} ({bundle.digest[:19]})"
            print(f"serving {info} on {url}", file=sys.stderr, flush=True)

        def on_failed(error: Exception) -> None:
            failure.append(error)
            server.should_exit = True

        limits = ConnectionLimits(
            settings.header_timeout_s, settings.idle_timeout_s, settings.write_timeout_s, settings.max_connections
        )
        connections = Connections(limits)
        app = create_app(settings, connections=connections, on_loaded=on_loaded, on_failed=on_failed)
        server = _Server(uvicorn_config(settings, app, connections))
        # uvicorn drains at SIGTERM and then raises the signal again, but a drained service must end with status 0
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # the event loop releases the interpreter lock at every system call and must get it back soon
        sys.setswitchinterval(_SWITCH_INTERVAL_S)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            _end_if_stuck(130, "redline: interrupted")
            raise
        if failure:
            raise failure[0]
        _end_if_stuck(0)


def uvicorn_config(settings: ServiceSettings, app: Any, connections: Connections) -> uvicorn.Config:
    """Configuration of uvicorn. ``X-Forwarded-For`` is read only if ``forwarded_allow_ips`` names the sender."""
    return uvicorn.Config(
        app,
        http=connections.protocol_class(),
        ws="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=settings.drain_s,
        proxy_headers=settings.forwarded_allow_ips is not None,
        forwarded_allow_ips=settings.forwarded_allow_ips or "",
        timeout_keep_alive=math.ceil(settings.idle_timeout_s),
        backlog=_ACCEPTED_AT_ONCE,
    )


def _end_if_stuck(status: int, message: str | None = None) -> None:
    """Exit now if a thread of the service still works, because the interpreter's normal exit could wait for it."""
    if any(thread.name.startswith("redline-") and thread.is_alive() for thread in threading.enumerate()):
        if message is not None:
            print(message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
