"""Prefix cache: keys and values of prefixes seen lately, bounded in tokens and in bytes."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence

from redline_model.inference.packed_attention import KVCache

Prefix = tuple[int, ...]
# the share of a device's memory that the prefix caches of a bundle may take where nothing else is asked for
DEFAULT_MEMORY_SHARE = 1 / 16


class PrefixCache:
    """Least recently used out first. Belongs to one worker; only ``in`` and ``bytes`` may be read from other threads.

    Args:
        max_tokens: what all entries together may hold; 0 keeps nothing.
        max_bytes: memory of all entries' keys and values together; may be changed later, see ``share_bytes``.
    """

    def __init__(self, max_tokens: int, max_bytes: float = math.inf) -> None:
        self.max_tokens = max_tokens
        self.max_bytes = max_bytes
        self.tokens = 0
        self.bytes = 0
        self._bytes_per_token = 0.0
        self._pasts: OrderedDict[Prefix, KVCache] = OrderedDict()

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._pasts

    def get(self, prefix: Prefix) -> KVCache | None:
        """The prefix's keys and values, now the most recently used; None if they are not there."""
        past = self._pasts.get(prefix)
        if past is not None:
            self._pasts.move_to_end(prefix)
        return past

    def has_room_for(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` can be kept at all."""
        return 0 < len(prefix) <= self.max_tokens and len(prefix) * self._bytes_per_token <= self.max_bytes

    def put(self, prefix: Prefix, past: KVCache) -> None:
        """Keep ``past``, which must be complete, and drop what no longer fits."""
        size = past.bytes
        self._bytes_per_token = size / max(1, len(prefix))
        if prefix in self._pasts or not self.has_room_for(prefix):
            return
        while self._pasts and (self.tokens + len(prefix) > self.max_tokens or self.bytes + size > self.max_bytes):
            dropped, kept = self._pasts.popitem(last=False)
            self.tokens -= len(dropped)
            self.bytes -= kept.bytes
        self._pasts[prefix] = past
        self.tokens += len(prefix)
        self.bytes += size

    def clear(self) -> None:
        """Drop everything, for memory that is needed elsewhere."""
        self._pasts.clear()
        self.tokens = self.bytes = 0


def share_bytes(caches: Sequence[PrefixCache], max_bytes: float) -> None:
    """Let ``caches`` together hold at most ``max_bytes``, each an equal part."""
    for cache in caches:
        cache.max_bytes = max_bytes / len(caches)
