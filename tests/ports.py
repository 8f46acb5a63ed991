"""Free ports for services under test."""

from __future__ import annotations

import random
import socket

# below the range for outgoing connections, which may be taken at any time, also by another test
_PORTS = range(20_000, 30_000)
_random = random.SystemRandom()


def free_port() -> int:
    """A port of this machine that is not in use."""
    while True:
        port = _random.choice(_PORTS)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
