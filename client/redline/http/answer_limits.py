"""The maximum size of a valid answer to a request, so that a broken server cannot send endless data.

Generous: real answers have about a tenth of it. In bytes of decompressed JSON.
"""

from __future__ import annotations

from collections.abc import Sequence

from redline.wire import ResponseItem, ScoreItem, ScoreRequest
from redline.wire.correction import CorrectRequest

# model, options, usage, and fields that a newer service may add
_FREE = 2**20
_ITEM = 8 * 2**10
# bytes; a reward and its offsets need about 45
_TOKEN = 96
# the longest rewrite of a model with a context of a million tokens, and its edits
_CORRECTION = 16 * 2**20


def largest_answer_bytes(request: ScoreRequest | CorrectRequest, positions: Sequence[int]) -> int:
    """Maximum bytes of an answer for the items of ``request`` at ``positions``."""
    is_scoring = isinstance(request, ScoreRequest)
    is_rewriting = not isinstance(request, ScoreRequest) or request.options.correction
    items = [request.items[position] for position in positions]
    tokens = sum(_max_tokens(item) for item in items) if is_scoring else 0
    return _FREE + len(items) * (_ITEM + (_CORRECTION if is_rewriting else 0)) + tokens * _TOKEN


def _max_tokens(item: ResponseItem) -> int:
    """At most one token per byte, doubled for characters that a normalizer splits, and some special tokens."""
    if isinstance(item, ScoreItem) and item.token_offsets is not None:
        return len(item.token_offsets)
    if item.response_ids is not None:
        return len(item.response_ids)
    return 2 * len((item.response or "").encode(errors="replace")) + 64
