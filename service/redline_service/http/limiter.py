"""Limits for concurrent requests and for the memory of their bodies. Requests beyond a limit are refused at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from redline_service.scheduling.errors import OverloadedError


class ConcurrencyLimiter:
    """A limited number of slots for requests. Not thread-safe: it belongs to the event loop.

    The last eighth of the slots is reserved for callers that hold fewer than an eighth, so that one caller cannot take
    all slots.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserved = limit // 8
        self._slots_of: Counter[Hashable] = Counter()
        self.in_use = 0

    def check(self, caller: Hashable) -> None:
        """Raise OverloadedError if no slot is free for ``caller``."""
        holds_many = self._slots_of[caller] >= self._reserved > 0
        if self.in_use >= self._limit - (self._reserved if holds_many else 0):
            raise OverloadedError(f"{self.in_use} requests are being answered")

    @contextmanager
    def slot(self, caller: Hashable) -> Iterator[None]:
        """Hold a slot for ``caller``. Raises OverloadedError if none is free for it."""
        self.check(caller)
        self.in_use += 1
        self._slots_of[caller] += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._slots_of[caller] -= 1
            if not self._slots_of[caller]:
                del self._slots_of[caller]


class BodyMemory:
    """Limited memory for bodies that are arriving or wait to be parsed. Not thread-safe: it belongs to the event loop.

    A caller may hold at most as many bytes as stay free, so half of the memory if no other caller holds any. A caller
    whose bodies never end can therefore not keep out the bodies of others.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._bytes_of: dict[Hashable, int] = {}
        self.in_use = 0

    @contextmanager
    def reservation(self, caller: Hashable) -> Iterator[BodyReservation]:
        """The memory of one body of ``caller``; released at the end."""
        reservation = BodyReservation(self, caller)
        try:
            yield reservation
        finally:
            reservation.release()

    def reserve(self, caller: Hashable, count: int) -> None:
        """Reserve ``count`` more bytes for ``caller``. Raises OverloadedError if they are not available."""
        caller_bytes = self._bytes_of.get(caller, 0) + count
        if caller_bytes > self._limit - self.in_use - count:
            raise OverloadedError("the memory for the bodies of requests is used up")
        self._bytes_of[caller] = caller_bytes
        self.in_use += count

    def release(self, caller: Hashable, count: int) -> None:
        """Release ``count`` bytes of ``caller``."""
        self.in_use -= count
        self._bytes_of[caller] -= count
        if not self._bytes_of[caller]:
            del self._bytes_of[caller]


class BodyReservation:
    """The memory that one body holds in a ``BodyMemory``."""

    def __init__(self, memory: BodyMemory, caller: Hashable) -> None:
        self._memory = memory
        self._caller = caller
        self._reserved = 0

    def add(self, count: int) -> None:
        """Reserve ``count`` more bytes. Raises OverloadedError if they are not available."""
        self._memory.reserve(self._caller, count)
        self._reserved += count

    def release(self) -> None:
        """Release all bytes of this body."""
        if self._reserved:
            self._memory.release(self._caller, self._reserved)
            self._reserved = 0
