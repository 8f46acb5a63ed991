"""Prefix cache: keys and values of recently used prefixes, bounded in tokens and in bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from redline_model.inference.packed_attention import KVCache

Prefix = tuple[int, ...]
# default share of a device's memory for all prefix caches of a bundle
DEFAULT_MEMORY_SHARE = 1 / 16


class PrefixCache:
    """Evicts the least recently used entry first. For one worker; other threads may only use ``in`` and ``bytes``.

    Args:
        max_tokens: tokens of all entries together; with 0 nothing is cached.
        max_bytes: memory of all entries' keys and values together; may be changed later, see ``share_bytes``.
    """

    def __init__(self, max_tokens: int, max_bytes: float = math.inf) -> None:
        self.max_tokens = max_tokens
        self.max_bytes = max_bytes
        self.tokens = 0
        self.bytes = 0
        self._bytes_per_token = 0.0
        self._entries: OrderedDict[Prefix, KVCache] = OrderedDict()

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._entries

    def get(self, prefix: Prefix) -> KVCache | None:
        """The prefix's keys and values, which become the most recently used; None if they are not cached."""
        kv_cache = self._entries.get(prefix)
        if kv_cache is not None:
            self._entries.move_to_end(prefix)
        return kv_cache

    def has_room_for(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` fits into an empty cache."""
        return 0 < len(prefix) <= self.max_tokens and len(prefix) * self._bytes_per_token <= self.max_bytes

    def put(self, prefix: Prefix, kv_cache: KVCache) -> None:
        """Add ``kv_cache``, which must be complete, and evict what no longer fits."""
        size = kv_cache.bytes
        self._bytes_per_token = size / max(1, len(prefix))
        if prefix in self._entries or not self.has_room_for(prefix):
            return
        while self._entries and (self.tokens + len(prefix) > self.max_tokens or self.bytes + size > self.max_bytes):
            evicted, evicted_cache = self._entries.popitem(last=False)
            self.tokens -= len(evicted)
            self.bytes -= evicted_cache.bytes
        self._entries[prefix] = kv_cache
        self.tokens += len(prefix)
        self.bytes += size

    def clear(self) -> None:
        """Remove all entries, to free memory."""
        self._entries.clear()
        self.tokens = self.bytes = 0


def share_bytes(caches: Sequence[PrefixCache], max_bytes: float) -> None:
    """Let ``caches`` together hold at most ``max_bytes``, each an equal part."""
    for cache in caches:
        cache.max_bytes = max_bytes / len(caches)
