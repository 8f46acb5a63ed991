"""Where sampled tokens stand in the text they decode to; works with any tokenizer, needs none of its library."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redline.spans import Span as Span

Decode = Callable[[Sequence[int]], str]
# What a decoder writes for bytes that are no character, or not one yet.
_BROKEN = "\ufffd"
# Settled tokens kept in the window: a token may be written differently at the start of a text.
_CONTEXT = 8
# Tokens whose text is not complete yet: a character has four bytes at most, so more than these are bytes of none.
_MAX_PENDING = 16
# Tokens for which decoding every prefix, quadratic in their number, is still quick.
_MAX_QUADRATIC = 1024


def token_spans(decode: Decode, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ``ids`` and the character span of each.

    Sampled ids are often not the tokenization that a tokenizer would give their text, so the text is decoded
    piece by piece. A token's span holds every character of which it has a byte, as byte-level tokenizers tell it:
    tokens within one multi-byte character all get that character's span.

    Linear in the number of ids for decoders that look back a few tokens at most, as those of tokenizers in use do.

    Args:
        decode: ids to text, special tokens included, so that nothing the policy wrote is invisible.

    Raises:
        ValueError: more than 1024 ids, and the decoder looks back further than that.
    """
    text = decode(ids)
    reached = _in_windows(decode, ids, text)
    if reached is None:
        if len(ids) > _MAX_QUADRATIC:
            raise ValueError(f"the spans of {len(ids)} ids cannot be found: what they decode to depends on distant ids")
        reached = [_reach(decode(ids[:count]), text, 0) for count in range(1, len(ids) + 1)]
    spans: list[Span] = []
    start = 0
    for whole, touched in reached:
        end = max(start, whole)
        spans.append((start, max(end, touched) if max(end, touched) > start else min(start + 1, len(text))))
        start = end
    return text, spans


def _reach(piece: str, text: str, start: int) -> tuple[int, int]:
    """Where ``text``, from ``start`` on, ceases to be ``piece``, and that with the character that is begun there."""
    if text.startswith(piece, start):
        return start + len(piece), start + len(piece)
    end = start
    for one, other in zip(piece, text[start : start + len(piece)], strict=False):
        if one != other:
            break
        end += 1
    is_begun = piece[end - start : end - start + 1] == _BROKEN and end < len(text)
    return end, end + is_begun


def _in_windows(decode: Decode, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
    """``_reach`` of every prefix of ``ids``, from a few tokens decoded at a time; None where those do not do.

    A window begins at a token after which the text was whole. What it adds behind tokens decoded before counts
    only where it is what the text has there, so a decoder that looks further back is noticed, not believed.
    """
    reached: list[tuple[int, int]] = []
    anchor = whole = 0  # the window's first token; the first token after which nothing is settled yet
    before, settled = "", 0  # the text of ids[anchor:whole], and where it ends in the whole text
    for count in range(1, len(ids) + 1):
        window = decode(ids[anchor:count])
        is_long = count - whole > _MAX_PENDING
        if not window.startswith(before):
            if is_long:
                return None
            reached.append((settled, settled))
            continue
        piece = window[len(before) :]
        end, touched = _reach(piece, text, settled)
        reached.append((end, touched))
        if end - settled < len(piece):
            if is_long:
                return None
            continue
        if piece.endswith(_BROKEN):
            if is_long:  # bytes that make no character, in the whole text either
                anchor = max(anchor, count - _CONTEXT)
                before, whole, settled = decode(ids[anchor:count]), count, end
            continue
        if whole - anchor >= _CONTEXT:
            anchor = whole
            window = decode(ids[anchor:count])
        before, whole, settled = window, count, end
    return reached if not ids or reached[-1][0] == len(text) else None
