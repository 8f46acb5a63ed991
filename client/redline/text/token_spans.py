"""Character spans of sampled tokens in their decoded text; works with any tokenizer, given its decode function."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from redline.spans import Span as Span

Decode = Callable[[Sequence[int]], str]
# Written by decoders for bytes that are not (yet) a complete character.
_BROKEN = "\ufffd"
# Processed tokens kept in the window, because a token may be decoded differently at the start of a text.
_CONTEXT = 8
# Maximum tokens of an incomplete character: it has at most four bytes, so more are invalid bytes.
_MAX_PENDING = 16
# Maximum number of tokens for decoding every prefix, which takes quadratic time.
_MAX_QUADRATIC = 1024


def token_spans(decode: Decode, ids: Sequence[int]) -> tuple[str, list[Span]]:
    """The text of ``ids`` and the character span of each.

    Sampled ids often differ from the ids that the tokenizer gives for their text, so prefixes are decoded. A token's
    span covers every character of which it has a byte, as with byte-level tokenizers: all tokens within one multi-byte
    character get that character's span.

    Linear in the number of ids if the decoder looks back only a few tokens, as common tokenizers do.

    Args:
        decode: ids to text, special tokens included, so that every sampled token is visible.

    Raises:
        ValueError: more than 1024 ids, and the decoder looks back too far for the linear algorithm.
    """
    text = decode(ids)
    ends = _ends_by_windows(decode, ids, text)
    if ends is None:
        if len(ids) > _MAX_QUADRATIC:
            raise ValueError(f"the spans of {len(ids)} ids cannot be found: their decoding depends on distant ids")
        ends = [_matching_end(decode(ids[:count]), text, 0) for count in range(1, len(ids) + 1)]
    spans: list[Span] = []
    start = 0
    for complete, touched in ends:
        end = max(start, complete)
        spans.append((start, max(end, touched) if max(end, touched) > start else min(start + 1, len(text))))
        start = end
    return text, spans


def _matching_end(piece: str, text: str, start: int) -> tuple[int, int]:
    """The end of the match of ``piece`` with ``text`` from ``start``, and the end including an incomplete character."""
    if text.startswith(piece, start):
        return start + len(piece), start + len(piece)
    end = start
    for actual, expected in zip(piece, text[start : start + len(piece)], strict=False):
        if actual != expected:
            break
        end += 1
    is_begun = piece[end - start : end - start + 1] == _BROKEN and end < len(text)
    return end, end + is_begun


def _ends_by_windows(decode: Decode, ids: Sequence[int], text: str) -> list[tuple[int, int]] | None:
    """``_matching_end`` of every prefix of ``ids``, by decoding windows of a few tokens; None if that is not enough.

    A window begins at a token after which the text was complete. The text that it adds is compared with ``text``, so
    that a decoder that looks further back is detected.
    """
    ends: list[tuple[int, int]] = []
    anchor = complete = 0  # first token of the window; number of tokens whose text is complete
    before, settled = "", 0  # the text of ids[anchor:complete], and its end in ``text``
    for count in range(1, len(ids) + 1):
        window = decode(ids[anchor:count])
        is_long = count - complete > _MAX_PENDING
        if not window.startswith(before):
            if is_long:
                return None
            ends.append((settled, settled))
            continue
        piece = window[len(before) :]
        end, touched = _matching_end(piece, text, settled)
        ends.append((end, touched))
        if end - settled < len(piece):
            if is_long:
                return None
            continue
        if piece.endswith(_BROKEN):
            if is_long:  # bytes that are not a character in the full text either
                anchor = max(anchor, count - _CONTEXT)
                before, complete, settled = decode(ids[anchor:count]), count, end
            continue
        if complete - anchor >= _CONTEXT:
            anchor = complete
            window = decode(ids[anchor:count])
        before, complete, settled = window, count, end
    return ends if not ids or ends[-1][0] == len(text) else None
