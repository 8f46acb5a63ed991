"""Warm prompts: keys and values of prefixes seen lately, bounded in tokens."""

from __future__ import annotations

from collections import OrderedDict

from redline_model.ragged import Past

Prefix = tuple[int, ...]


class PrefixCache:
    """Least recently used out first. Belongs to one worker; only ``in`` may be asked from other threads.

    Args:
        max_tokens: what all entries together may hold; 0 keeps nothing.
    """

    def __init__(self, max_tokens: int) -> None:
        self.max_tokens = max_tokens
        self.tokens = 0
        self._pasts: OrderedDict[Prefix, Past] = OrderedDict()

    def __contains__(self, prefix: Prefix) -> bool:
        return prefix in self._pasts

    def get(self, prefix: Prefix) -> Past | None:
        """The prefix's keys and values, now the most recently used; None if they are not there."""
        past = self._pasts.get(prefix)
        if past is not None:
            self._pasts.move_to_end(prefix)
        return past

    def has_room_for(self, prefix: Prefix) -> bool:
        """Whether ``prefix`` can be kept at all."""
        return 0 < len(prefix) <= self.max_tokens

    def put(self, prefix: Prefix, past: Past) -> None:
        """Keep ``past``, which must be complete, and forget what no longer fits."""
        if prefix in self._pasts or not self.has_room_for(prefix):
            return
        while self.tokens + len(prefix) > self.max_tokens:
            forgotten, _ = self._pasts.popitem(last=False)
            self.tokens -= len(forgotten)
        self._pasts[prefix] = past
        self.tokens += len(prefix)
