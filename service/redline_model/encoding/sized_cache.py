"""A thread-safe LRU cache, bounded by the total size of its entries instead of their number."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class SizedCache(Generic[K, V]):
    """Cached results of ``compute``; the least recently used are evicted first.

    Args:
        compute: from key to value; exceptions are passed on and not cached.
        size_of: the size of an entry, in the unit of ``max_size``.
    """

    def __init__(self, compute: Callable[[K], V], size_of: Callable[[K, V], int], max_size: int) -> None:
        self._compute = compute
        self._size_of = size_of
        self._max_size = max_size
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._lock = threading.Lock()
        self.size = 0

    def __call__(self, key: K) -> V:
        """The value of ``key``, computed if it is not cached. Two threads may compute the same value at once."""
        with self._lock:
            entry = self._entries.get(key)
            if entry is not None:
                self._entries.move_to_end(key)
                return entry[0]
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
