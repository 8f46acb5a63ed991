"""Draft tokens for speculative decoding of a rewrite, copied from the response that is rewritten.

A rewrite mostly copies its response (the idea of arXiv 2304.04487 and of prompt lookup decoding). The model checks
several draft tokens in one pass and accepts those that it would have written itself.
"""

from __future__ import annotations

from collections.abc import Sequence

# How far ahead a written token is searched for in the response, to continue from there after a divergence.
_SEARCH_WINDOW = 16
_MAX_DRAFT_LENGTH = 32


class Draft:
    """The estimated position of a rewrite in ``source``, and how many tokens to draft from there.

    Args:
        source: the response's target ids.
        start: the first position of ``source`` that the rewrite does not copy.
    """

    def __init__(self, source: Sequence[int], start: int) -> None:
        self._source = source
        self._search_from = start  # the first source token not matched since the rewrite last followed the source
        self._next = start
        self._draft_length = 4

    def propose(self, room: int) -> list[int]:
        """The next draft: at most ``room`` tokens of the source."""
        return list(self._source[self._next : self._next + min(self._draft_length, max(room, 0))])

    def update(self, proposed: int, accepted: int, written: int) -> None:
        """The first ``accepted`` of ``proposed`` draft tokens were right, and then the model wrote ``written``.

        The draft length grows if all tokens were accepted and shrinks if not. If ``written`` is not the source's next
        token, it is searched for in a window of the source: if it is found, the rewrite has left out or inserted
        tokens; if not, the rewrite is assumed to have replaced one token by one.
        """
        self._next += accepted
        if accepted:
            self._search_from = self._next
        if proposed:
            self._draft_length = (
                min(2 * self._draft_length, _MAX_DRAFT_LENGTH)
                if accepted == proposed
                else max(1, accepted, self._draft_length // 2)
            )
        if list(self._source[self._next : self._next + 1]) == [written]:
            self._next += 1
            self._search_from = self._next
            return
        window = list(self._source[self._search_from : self._search_from + _SEARCH_WINDOW])
        self._next = self._search_from + window.index(written) + 1 if written in window else self._next + 1
