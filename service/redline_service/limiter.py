"""How many requests are answered at once; one that is refused costs nothing and is refused at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from redline_service.errors import OverloadedError


class ConcurrencyLimiter:
    """A counter with a bound. Not thread-safe: it lives on the event loop."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.in_use = 0

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Hold one of the slots. Raises OverloadedError if none is free."""
        if self.in_use >= self._limit:
            raise OverloadedError(f"{self.in_use} requests are being answered")
        self.in_use += 1
        try:
            yield
        finally:
            self.in_use -= 1
