"""How many requests are answered at once and what their bodies may take; one that is refused is refused at once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

from redline_service.scheduling.errors import OverloadedError


class ConcurrencyLimiter:
    """Slots for requests, with a bound. Not thread-safe: it lives on the event loop.

    The last eighth of the slots is for callers that hold fewer than an eighth: one caller cannot take all of them.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept_free = limit // 8
        self._held: Counter[Hashable] = Counter()
        self.in_use = 0

    def check(self, caller: Hashable) -> None:
        """Raise OverloadedError if ``caller`` gets no slot now."""
        has_many = self._held[caller] >= self._kept_free > 0
        if self.in_use >= self._limit - (self._kept_free if has_many else 0):
            raise OverloadedError(f"{self.in_use} requests are being answered")

    @contextmanager
    def slot(self, caller: Hashable) -> Iterator[None]:
        """Hold one of the slots for ``caller``. Raises OverloadedError if there is none."""
        self.check(caller)
        self.in_use += 1
        self._held[caller] += 1
        try:
            yield
        finally:
            self.in_use -= 1
            self._held[caller] -= 1
            if not self._held[caller]:
                del self._held[caller]


class BodyMemory:
    """The bytes of all bodies that are coming in or wait to be parsed, with a bound. Lives on the event loop.

    A caller may hold as much as is left for the others, so half of it if nobody else holds any: bodies that never end
    keep nobody else's out.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Hashable, int] = {}
        self.in_use = 0

    @contextmanager
    def share(self, caller: Hashable) -> Iterator[BodyShare]:
        """What one body of ``caller`` takes; given back at the end."""
        share = BodyShare(self, caller)
        try:
            yield share
        finally:
            share.release()

    def take(self, caller: Hashable, count: int) -> None:
        """``count`` bytes more. Raises OverloadedError if they are not to be had."""
        held = self._held.get(caller, 0) + count
        if held > self._limit - self.in_use - count:
            raise OverloadedError("the bodies of requests take all the memory that there is for them")
        self._held[caller] = held
        self.in_use += count

    def give(self, caller: Hashable, count: int) -> None:
        """``count`` bytes back."""
        self.in_use -= count
        self._held[caller] -= count
        if not self._held[caller]:
            del self._held[caller]


class BodyShare:
    """What one body takes of a ``BodyMemory``."""

    def __init__(self, memory: BodyMemory, caller: Hashable) -> None:
        self._memory = memory
        self._caller = caller
        self._taken = 0

    def add(self, count: int) -> None:
        """``count`` bytes more have come. Raises OverloadedError."""
        self._memory.take(self._caller, count)
        self._taken += count

    def release(self) -> None:
        """All of it back."""
        if self._taken:
            self._memory.give(self._caller, self._taken)
            self._taken = 0
