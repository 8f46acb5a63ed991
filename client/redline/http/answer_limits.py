"""How long an answer to a request can be: a longer one is not read, so that parsing it costs what was asked for.

Generous: what a service really answers takes a tenth. Bytes of JSON, after inflation.
"""

from __future__ import annotations

from collections.abc import Sequence

from redline.wire import ResponseItem, ScoreItem, ScoreRequest
from redline.wire.correction import CorrectRequest

# model, options, usage, and whatever a newer service adds
_FREE = 2**20
_ITEM = 8 * 2**10
# a reward and its offsets take about 45
_TOKEN = 96
# the longest text that a model of a million tokens writes, and the edits that lead there
_CORRECTION = 16 * 2**20


def longest_answer(request: ScoreRequest | CorrectRequest, positions: Sequence[int]) -> int:
    """Bytes that no answer about the items of ``request`` at ``positions`` exceeds."""
    is_scoring = isinstance(request, ScoreRequest)
    is_rewriting = not isinstance(request, ScoreRequest) or request.options.correction
    items = [request.items[position] for position in positions]
    tokens = sum(_most_tokens(item) for item in items) if is_scoring else 0
    return _FREE + len(items) * (_ITEM + (_CORRECTION if is_rewriting else 0)) + tokens * _TOKEN


def _most_tokens(item: ResponseItem) -> int:
    """A text has no more tokens than bytes, but for characters that a normaliser takes apart, and special tokens."""
    if isinstance(item, ScoreItem) and item.token_offsets is not None:
        return len(item.token_offsets)
    if item.response_ids is not None:
        return len(item.response_ids)
    return 2 * len((item.response or "").encode(errors="replace")) + 64
