"""Guesses how a rewrite goes on: it mostly copies the response that it rewrites.

Speculative decoding with the source as draft (the idea of arXiv 2304.04487 and of prompt lookup): the model
checks a run of guessed tokens in one pass, and keeps those that it would have written itself.
"""

from __future__ import annotations

from collections.abc import Sequence

# How far ahead a written token is looked for in the response, to find the place again after a divergence.
_WINDOW = 16
_LONGEST = 32


class Draft:
    """The place in ``source`` where a rewrite is believed to be, and how far it is trusted.

    Args:
        source: the response's target ids.
        start: the first position of ``source`` that the rewrite did not take over.
    """

    def __init__(self, source: Sequence[int], start: int) -> None:
        self._source = source
        self._lost_at = start  # the first source token not matched since the rewrite last followed the source
        self._next = start
        self._trust = 4

    def propose(self, room: int) -> list[int]:
        """At most ``room`` tokens."""
        return list(self._source[self._next : self._next + min(self._trust, max(room, 0))])

    def learn(self, proposed: int, accepted: int, written: int) -> None:
        """Of ``proposed`` tokens the first ``accepted`` were right, and then ``written`` was written.

        Trust grows and shrinks with what was right. Where ``written`` is not the source's next token, the place
        is looked for in a window from where it was lost: found, the rewrite has dropped tokens or put some in;
        not found, it is taken to have replaced one token by one.
        """
        self._next += accepted
        if accepted:
            self._lost_at = self._next
        if proposed:
            self._trust = min(2 * self._trust, _LONGEST) if accepted == proposed else max(1, accepted, self._trust // 2)
        if list(self._source[self._next : self._next + 1]) == [written]:
            self._next += 1
            self._lost_at = self._next
            return
        window = list(self._source[self._lost_at : self._lost_at + _WINDOW])
        self._next = self._lost_at + window.index(written) + 1 if written in window else self._next + 1
