"""How fast the service gets through its queue, measured while there is one."""

from __future__ import annotations

import math

# Seconds of work after which an observation counts for a third: long enough to be steady, short enough to follow the
# load and the neighbours of a shared machine.
_MEMORY_S = 3.0


class Throughput:
    """Tokens a second of wall-clock time, and seconds of one pass, as exponentially weighted means.

    Wall-clock time counts everything that happens between two passes, too: what callers wait for is that, and not the
    arithmetic alone. Passes that leave nothing waiting say nothing about how fast a queue would shrink, and are not to
    be observed.
    """

    def __init__(self) -> None:
        self._tokens = 0.0
        self._seconds = 0.0
        self._passes = 0.0

    def observe(self, tokens: int, seconds: float) -> None:
        """A pass over items of ``tokens`` tokens ended ``seconds`` after the one before it (or after it began)."""
        decay = math.exp(-seconds / _MEMORY_S)
        self._tokens = self._tokens * decay + tokens
        self._seconds = self._seconds * decay + seconds
        self._passes = self._passes * decay + 1

    @property
    def tokens_per_s(self) -> float:
        """0 as long as nothing was observed."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def pass_s(self) -> float:
        """Seconds of a pass; 0 as long as nothing was observed."""
        return self._seconds / self._passes if self._passes else 0.0

    def seconds_for(self, tokens: float) -> float:
        """How long ``tokens`` take; 0 where it is not known."""
        rate = self.tokens_per_s
        return tokens / rate if rate else 0.0
