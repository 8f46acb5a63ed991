"""A cache bounded by the size of what it holds, not by the number of its entries. Thread-safe."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SizedCache(Generic[K, V]):
    """Results of ``compute``, the least recently used dropped first.

    Args:
        compute: key to value; an exception is passed on and not kept.
        size_of: the size of an entry, in whatever unit ``max_size`` has.
    """

    def __init__(self, compute: Callable[[K], V], size_of: Callable[[K, V], int], max_size: int) -> None:
        self._compute = compute
        self._size_of = size_of
        self._max_size = max_size
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0

    def __call__(self, key: K) -> V:
        """The value of ``key``, computed if it is not held. Two threads may compute the same value at once."""
        with self._lock:
            held = self._entries.get(key)
            if held is not None:
                self._entries.move_to_end(key)
                return held[0]
        value = self._compute(key)
        size = self._size_of(key, value)
        if size <= self._max_size:
            with self._lock:
                if key not in self._entries:
                    self._entries[key] = (value, size)
                    self.size += size
                while self.size > self._max_size:
                    self.size -= self._entries.popitem(last=False)[1][1]
        return value
