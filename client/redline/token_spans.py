"""Where sampled tokens stand in the text they decode to; works with any tokenizer, needs none of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Span = tuple[int, int]
Decode = Callable[[Sequence[int]], str]
# What a decoder writes for bytes that are no character, or not one yet.
_BROKEN = "\ufffd"
# Settled tokens kept in the window: a token may be written differently at the start of a text.
_CONTEXT = 8


def token_spans(decode: Decode, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ``ids`` and the character span of each.

    Sampled ids are often not the tokenization that a tokenizer would give their text, so the text is decoded
    piece by piece. Tokens that lie within one multi-byte character all get that character's span.

    Args:
        decode: ids to text, special tokens included, so that nothing the policy wrote is invisible.
    """
    text = decode(ids)
    settled = _settled_in_windows(decode, ids, text)
    if settled is None:
        settled = [_agreement(decode(ids[:count]), text, 0) for count in range(1, len(ids) + 1)]
    spans: list[Span] = []
    start = 0
    for reached in settled:
        end = max(start, reached)
        spans.append((start, end if end > start else min(start + 1, len(text))))
        start = end
    return text, spans


def _agreement(piece: str, text: str, start: int) -> int:
    """Where ``text``, from ``start`` on, ceases to be ``piece``."""
    if text.startswith(piece, start):
        return start + len(piece)
    end = start
    for one, other in zip(piece, text[start : start + len(piece)], strict=False):
        if one != other:
            break
        end += 1
    return end


def _settled_in_windows(decode: Decode, ids: Sequence[int], text: str) -> list[int] | None:
    """How much of ``text`` stands after each token, from a few tokens decoded at a time; None where those do not do.

    A window begins at a token after which the text was whole. What it adds behind tokens decoded before counts
    only where it is what the text has there, so a decoder that looks further back is noticed, not believed.
    """
    settled: list[int] = []
    anchor = whole = 0  # the window's first token; the first token after which nothing is settled yet
    before, reached = "", 0  # the text of ids[anchor:whole], and where it ends in the whole text
    for count in range(1, len(ids) + 1):
        window = decode(ids[anchor:count])
        if not window.startswith(before):
            settled.append(reached)
            continue
        piece = window[len(before) :]
        end = _agreement(piece, text, reached)
        settled.append(end)
        if end - reached < len(piece) or piece.endswith(_BROKEN):
            continue
        if whole - anchor >= _CONTEXT:
            anchor = whole
            window = decode(ids[anchor:count])
        before, whole, reached = window, count, end
    return settled if not ids or settled[-1] == len(text) else None
