"""Moves rewards from one tokenization of a text to another; their sum is kept. Pure, standard library only.

Offsets are in characters into the response, end exclusive; an end-of-sequence token is an empty span at the end.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence

from redline.spans import Span

# A character has at most four bytes; a few special tokens are added.
_SPARE_OFFSETS = 16
# Tokens over one character: it has at most four bytes, and a normalizer turns some into up to 18 characters.
_MAX_OVERLAP = 80


def check_offsets(offsets: Sequence[Span], text: str) -> str | None:
    """Why ``offsets`` are not a tokenization of ``text``; None if they are.

    Every character except white space must be covered; spans must be inside the text and in order. Spans may be empty
    and may overlap (as tokens within one multi-byte character do), at most 80 over one character.
    """
    if not offsets:
        return "token_offsets is empty"
    if len(offsets) > 4 * len(text) + _SPARE_OFFSETS:
        return f"{len(offsets)} token_offsets for {len(text)} characters: more tokens than bytes"
    covered = 0
    previous = 0
    overlapping: list[int] = []  # ends of the spans over the current position
    for index, (start, end) in enumerate(offsets):
        if not 0 <= start <= end <= len(text):
            return f"token_offsets[{index}] is [{start}, {end}]; the response has {len(text)} characters"
        if start < previous:
            return f"token_offsets[{index}] starts at {start}, before its predecessor's {previous}"
        if start > previous:
            overlapping = [other for other in overlapping if other > start]
        if start < end:
            overlapping.append(end)
        if len(overlapping) > _MAX_OVERLAP:
            return f"token_offsets have more than {_MAX_OVERLAP} tokens over the character {start}"
        previous = start
        if start > covered and text[covered:start].strip():
            return f"token_offsets do not cover the characters {covered} to {start}"
        covered = max(covered, end)
    if text[covered:].strip():
        return f"token_offsets do not cover the characters {covered} to {len(text)}"
    return None


def align_rewards(rewards: Sequence[float], spans: Sequence[Span], target_spans: Sequence[Span]) -> list[float]:
    """Returns one reward per target token.

    A source token's reward is shared among the target tokens that it overlaps, by the number of characters in
    common; if it overlaps none (an end token, or white space that the target omits), it goes to the target token
    at its position: the empty span there if there is one, else the last token that begins before its end.
    Equal tokenizations map one to one.

    Args:
        rewards, spans: S source tokens.
        target_spans: T target tokens, T > 0, starts in ascending order.

    Raises:
        ValueError: ``rewards`` and ``spans`` differ in length, or there is no target token.
    """
    if len(rewards) != len(spans):
        raise ValueError(f"{len(rewards)} rewards for {len(spans)} spans")
    if not target_spans:
        raise ValueError("there is no target token to carry a reward")
    if list(spans) == list(target_spans):
        return list(rewards)
    aligned = [0.0] * len(target_spans)
    starts = [start for start, _ in target_spans]
    empty_at = {start: i for i, (start, end) in enumerate(target_spans) if start == end}
    for reward, (_, end), shares in zip(rewards, spans, _shares(spans, target_spans), strict=True):
        if not shares:
            target = empty_at.get(end, max(0, bisect_left(starts, max(end, 1)) - 1))
            aligned[target] += reward
            continue
        total = sum(common for _, common in shares)
        remaining = reward
        for i, common in shares[:-1]:
            part = reward * common / total
            aligned[i] += part
            remaining -= part
        aligned[shares[-1][0]] += remaining
    return aligned


def _shares(spans: Sequence[Span], target_spans: Sequence[Span]) -> Iterator[list[tuple[int, int]]]:
    """For each source span, the targets that it overlaps and the number of common characters.

    One sweep over both lists, linear in the spans and their overlaps, as long as the starts of the source spans ascend.
    A source span that starts before its predecessor restarts the sweep.
    """
    current: list[int] = []  # targets that have begun and may end after the current start
    upcoming = previous = 0
    for start, end in spans:
        if start < previous:
            current, upcoming = [], 0
        previous = start
        while upcoming < len(target_spans) and target_spans[upcoming][0] < end:
            current.append(upcoming)
            upcoming += 1
        current = [i for i in current if target_spans[i][1] > start]
        overlaps = ((i, min(end, target_spans[i][1]) - max(start, target_spans[i][0])) for i in current)
        yield [(i, common) for i, common in overlaps if common > 0]
