"""Running the service: one process, one model, SIGTERM drains."""

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
# None of them is known to the limit on connections before all are accepted.
_ACCEPTED_AT_ONCE = 32
_SWITCH_S = 0.0005


def listen(host: str, port: int) -> socket.socket:
    """A listening socket: from here on nobody else can have the port. Raises OSError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # the protocol is named because asyncio sets TCP_NODELAY only where it is: without it, small answers on a kept
    # connection wait for the other side's delayed acknowledgement
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
    """uvicorn's server; asyncio accepts few connections at a time, and the kernel holds many."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or []:
            listener.listen(_BACKLOG)  # asyncio has set it to the number that it accepts at a time


def serve(settings: ServiceSettings) -> None:
    """Serve a bundle until a signal; it is loaded while probes are answered already.

    Requests under way are answered first, for ``settings.drain_s`` at most. Work that does not end by then (a forward
    pass, a text that is being tokenised) is left behind: the process ends without it.

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

        def loaded(bundle: Bundle) -> None:
            # a collection that looks through torch and the model takes a fifth of a second, and would do so again
            # and again under load
            gc.collect()
            gc.freeze()
            info = f"{bundle.scorer.kind} model {settings.bundle} ({bundle.digest[:19]})"
            print(f"serving {info} on {url}", file=sys.stderr, flush=True)

        def failed(error: Exception) -> None:
            failure.append(error)
            server.should_exit = True

        limits = ConnectionLimits(
            settings.header_timeout_s, settings.idle_timeout_s, settings.write_timeout_s, settings.max_connections
        )
        connections = Connections(limits)
        app = create_app(settings, connections=connections, on_loaded=loaded, on_failed=failed)
        server = _Server(configuration(settings, app, connections))
        # uvicorn drains at SIGTERM and then raises it again; a drained service has ended well, with status 0
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        # the event loop gives up the interpreter's lock at every system call; it is to have it back soon
        sys.setswitchinterval(_SWITCH_S)
        try:
            server.run(sockets=[listener])
        except KeyboardInterrupt:
            _end_if_stuck(130, "redline: interrupted")
            raise
        if failure:
            raise failure[0]
        _end_if_stuck(0)


def configuration(settings: ServiceSettings, app: Any, connections: Connections) -> uvicorn.Config:
    """How uvicorn runs ``app``. The address of a caller is the connection's, unless a proxy's was named."""
    return uvicorn.Config(
        app,
        http=connections.protocol(),
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
    """End the process now if a thread of the service still works: the interpreter's own end could wait for it."""
    if any(thread.name.startswith("redline-") and thread.is_alive() for thread in threading.enumerate()):
        if message is not None:
            print(message, file=sys.stderr)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
