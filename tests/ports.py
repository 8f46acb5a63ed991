"""Ports for services under test."""

from __future__ import annotations

import random
import socket

# below the ports that systems give to outgoing connections: one of those may be taken at any time, by another test too
_PORTS = range(20_000, 30_000)
_draw = random.SystemRandom()


def free_port() -> int:
    """A port of this machine that nothing listens on."""
    while True:
        port = _draw.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
