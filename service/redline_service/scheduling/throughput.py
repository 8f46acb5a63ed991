"""Measures how many tokens per second the service scores while requests are queued."""

from __future__ import annotations

import math

# Time constant of the moving averages, in seconds: after it an observation has a weight of 1/e. Long enough for a
# steady estimate, short enough to follow the load and the other programs of a shared machine.
_DECAY_S = 3.0


class Throughput:
    """Exponentially weighted means: tokens per second of wall-clock time, and seconds per pass.

    Wall-clock time includes everything that happens between two passes, because callers wait for that as well. Observe
    only passes that leave items in the queue: a pass that empties it does not show how fast a queue would shrink.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._passes = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """Record a pass over items of ``tokens`` tokens.

        Args:
            seconds: from the end of the previous pass (or the start of this one, if the model was idle) to its end.
        """
        decay = math.exp(-seconds / _DECAY_S)
        self._tokens = self._tokens * decay + tokens
        self._seconds = self._seconds * decay + seconds
        self._passes = self._passes * decay + 1

    @property
    def tokens_per_s(self) -> float:
        """Tokens per second; 0 if nothing was observed yet."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def pass_s(self) -> float:
        """Seconds per pass; 0 if nothing was observed yet."""
        return self._seconds / self._passes if self._passes else 0.0

    def seconds_for(self, tokens: float) -> float:
        """Expected seconds to score ``tokens``; 0 if nothing was observed yet."""
        rate = self.tokens_per_s
        return tokens / rate if rate else 0.0
