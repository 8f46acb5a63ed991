"""How many requests are let in at once; a refused one costs nothing and is told at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redline.wire import ErrorCode
from redline_service.errors import RequestError


class Permits:
    """A counter with a bound; not thread-safe, it lives on the event loop."""

    def __init__(self, bound: int) -> None:
        self._bound = bound
        self.taken = 0

    @contextmanager
    def take(self) -> Iterator[None]:
        """Hold a permit. Raises RequestError OVERLOADED when all are taken."""
        if self.taken >= self._bound:
            raise RequestError(ErrorCode.OVERLOADED, f"{self.taken} requests are being answered", retry_after_s=1)
        self.taken += 1
        try:
            yield
        finally:
            self.taken -= 1
