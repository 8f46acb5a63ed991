"""Where sampled tokens stand in the text they decode to; works with any tokenizer, needs none of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Span = tuple[int, int]


def token_spans(decode: Callable[[Sequence[int]], str], ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ``ids`` and the character span of each.

    Sampled ids are often not the tokenization that a tokenizer would give their text, so the text is decoded
    prefix by prefix. Tokens that lie within one multi-byte character all get that character's span.

    Args:
        decode: ids to text, special tokens included, so that nothing the policy wrote is invisible.
    """
    text = decode(ids)
    spans: list[Span] = []
    start = 0
    for count in range(1, len(ids) + 1):
        prefix = decode(ids[:count])
        end = start
        limit = min(len(prefix), len(text))
        while end < limit and prefix[end] == text[end]:
            end += 1
        spans.append((start, end if end > start else min(start + 1, len(text))))
        start = end
    return text, spans
