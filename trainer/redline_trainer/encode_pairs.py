"""Preference pairs as ids: every pair is encoded, and the ones that cannot be used are listed, before any training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from redline.files.row_files import Problems
from redline.preference_data.row_report import MAX_SHOWN, RowReport
from redline.preference_data.rows import Pair
from redline_model.encoding.encoder import EncodedItem, Encoder, Item
from redline_model.errors import DataError, ItemError, TooLongError


class EncodedPair(NamedTuple):
    """A pair as ids.

    ``prompt_key``: equal for pairs that share a prompt. ``number``: the pair's index in the list it came from.
    ``mismatched``: the chosen response to another prompt, encoded after this prompt; None if the objective uses none.
    """

    chosen: EncodedItem
    rejected: EncodedItem
    prompt_key: str
    number: int = 0
    mismatched: EncodedItem | None = None


def correction_item(pair: EncodedPair) -> EncodedItem:
    """The rejected response as source, the chosen one as target."""
    return _to_chosen(pair.rejected, pair)


def _to_chosen(source: EncodedItem, pair: EncodedPair) -> EncodedItem:
    return replace(source, target_ids=pair.chosen.target_ids, offsets=pair.chosen.offsets)


def mismatch_item(pair: EncodedPair) -> EncodedItem | None:
    """The mismatched response as source, the chosen one as target; None if the pair has no mismatched response."""
    return None if pair.mismatched is None else _to_chosen(pair.mismatched, pair)


def encode_pairs(
    encoder: Encoder, pairs: Sequence[Pair], on_too_long: str, report: RowReport | None = None
) -> tuple[list[EncodedPair], int]:
    """Every pair as ids, and how many were left out because they are too long.

    Args:
        on_too_long: ``error``, ``truncate`` (the prompt) or ``skip``.
        report: takes pairs that cannot be used if it skips bad rows; by default they are refused.

    Raises:
        DataError: listing every pair that cannot be used, all at once.
    """
    report = report or RowReport()
    encoded: list[EncodedPair] = []
    problems = Problems(MAX_SHOWN)
    skipped = 0
    for number, pair in enumerate(pairs):
        try:
            ids = _encode_pair(encoder, pair, may_truncate=on_too_long == "truncate")
            encoded.append(ids._replace(number=number))
        except ItemError as error:
            if isinstance(error, TooLongError) and on_too_long == "skip":
                skipped += 1
            elif not report.skip(pair.where, str(error)):
                problems.add(f"{pair.where}: {error}")
        if problems.is_full:
            break
    if problems.count:
        raise DataError(problems.listing("pairs cannot be used; nothing was trained"))
    return encoded, skipped


def encode_all(
    encoder: Encoder, parts: Sequence[Sequence[Pair]], on_too_long: str, report: RowReport | None
) -> list[tuple[list[EncodedPair], int]]:
    """``encode_pairs`` of each part; the problems of all of them in one error."""
    encoded: list[tuple[list[EncodedPair], int]] = []
    problems: list[str] = []
    for part in parts:
        try:
            encoded.append(encode_pairs(encoder, part, on_too_long, report))
        except DataError as error:
            problems.append(str(error))
    if problems:
        raise DataError("\n".join(problems))
    return encoded


def _encode_pair(encoder: Encoder, pair: Pair, *, may_truncate: bool) -> EncodedPair:
    """Both sides behind one prompt, cut if need be so that the longest of their three sequences fits."""
    chosen, rejected = (
        encoder.encode(Item(pair.prompt, response, tools=pair.tools), is_bounded=False)
        for response in (pair.chosen, pair.rejected)
    )

    if chosen.target_ids == rejected.target_ids:
        raise ItemError("'chosen' and 'rejected' have the same token ids")

    def needed(prefix: int) -> int:
        combinations = ((chosen, chosen), (rejected, rejected), (rejected, chosen))  # the last one is the correction
        return max(
            encoder.length(prefix, len(source.response_ids), len(source.instruction_ids), len(target.target_ids))
            for source, target in combinations
        )

    # one prompt, but a chat template's own rendering may end it a token earlier before one of the responses
    limit, prefix = encoder.max_tokens, max(chosen.prefix_ids, rejected.prefix_ids, key=len)
    if limit is not None and needed(len(prefix)) > limit:
        reason = f"the pair needs {needed(len(prefix))} tokens and the model reads {limit}"
        if not may_truncate:
            raise TooLongError(reason)
        spare = len(prefix) - (needed(len(prefix)) - limit)
        prefix = encoder.encode_prompt(pair.prompt, max_prefix_tokens=spare, tools=pair.tools)[0]
        if needed(len(prefix)) > limit:
            raise TooLongError(f"{reason}; its responses alone are too long, and only prompts are truncated")
        chosen, rejected = replace(chosen, prefix_ids=prefix), replace(rejected, prefix_ids=prefix)
    return EncodedPair(chosen, rejected, pair.prompt_key)
