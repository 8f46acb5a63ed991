"""Tokenises preference pairs. All pairs that cannot be used are reported together, before training starts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from redline.files.row_files import Problems
from redline.preference_data.row_report import MAX_SHOWN, RowReport
from redline.preference_data.rows import Pair
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import DataError, ItemError, TooLongError


class EncodedPair(NamedTuple):
    """A tokenised pair.

    ``chosen``, ``rejected``: the two responses, each with the prompt.
    ``prompt_key``: equal for pairs with the same prompt.
    ``number``: index of the pair in the list of all pairs.
    ``mismatched``: the chosen response to another prompt, encoded with this prompt; None if there is none.
    ``shortened``: the chosen response without its end, as a source; None if there is none.
    """

    chosen: EncodedItem
    rejected: EncodedItem
    prompt_key: str
    number: int = 0
    mismatched: EncodedItem | None = None
    shortened: EncodedItem | None = None


def correction_item(pair: EncodedPair) -> EncodedItem:
    """The item of the correction mapping: the rejected response as source, the chosen one as target."""
    return _to_chosen(pair.rejected, pair)


def _to_chosen(source: EncodedItem, pair: EncodedPair) -> EncodedItem:
    return replace(source, target_ids=pair.chosen.target_ids, offsets=pair.chosen.offsets)


def mismatch_item(pair: EncodedPair) -> EncodedItem | None:
    """The item of the mismatch mapping: the mismatched response as source. None if the pair has no such response."""
    return None if pair.mismatched is None else _to_chosen(pair.mismatched, pair)


def omission_item(pair: EncodedPair) -> EncodedItem | None:
    """The item of the omission mapping: the shortened response as source. None if the pair has no such response."""
    return None if pair.shortened is None else _to_chosen(pair.shortened, pair)


def encode_pairs(
    encoder: Encoder, pairs: Sequence[Pair], on_too_long: str, report: RowReport | None = None
) -> tuple[list[EncodedPair], int]:
    """Tokenise all pairs. Returns the encoded pairs, and the number of pairs that were skipped as too long.

    Args:
        on_too_long: ``error``, ``truncate`` (the prompt) or ``skip``.
        report: collects pairs that cannot be used if it skips bad rows. By default they are an error.

    Raises:
        DataError: some pairs cannot be used. The message lists them.
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
    """``encode_pairs`` for each of ``parts``, with the problems of all parts in one error."""
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
    """Encode both responses with one prompt. It is truncated so that the longest of their three sequences fits."""
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

    # a chat template may end the rendered prompt one token earlier before one of the responses; the longer one is used
    limit, prefix = encoder.max_tokens, max(chosen.prefix_ids, rejected.prefix_ids, key=len)
    if limit is not None and needed(len(prefix)) > limit:
        reason = f"the pair needs {needed(len(prefix))} tokens, the limit of the model is {limit}"
        if not may_truncate:
            raise TooLongError(reason)
        spare = len(prefix) - (needed(len(prefix)) - limit)
        prefix = encoder.encode_prompt(pair.prompt, max_prefix_tokens=spare, tools=pair.tools)[0]
        if needed(len(prefix)) > limit:
            raise TooLongError(
                f"{reason}; its responses without a prompt are too long, and responses are not truncated"
            )
        chosen, rejected = replace(chosen, prefix_ids=prefix), replace(rejected, prefix_ids=prefix)
    return EncodedPair(chosen, rejected, pair.prompt_key)
