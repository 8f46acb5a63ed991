"""Encodes an item of the wire as token ids. It tokenises, so do not call it on the event loop."""

from __future__ import annotations

from typing import Any

from redline.text.alignment import check_offsets
from redline.wire import ErrorCode, OnTooLong, ResponseItem, ScoreItem
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import RedlineModelError
from redline_service.errors import ItemRejectedError


def encode_item(
    item: ResponseItem, on_too_long: OnTooLong, encoder: Encoder, fingerprint: str
) -> EncodedItem | RedlineModelError | ItemRejectedError:
    """The token ids of ``item``, or the error that its caller gets.

    Args:
        on_too_long: what to do with a prompt that is too long for the model.
        fingerprint: of the encoder's tokenizer; ids of another tokenizer are refused.
    """
    if item.tokenizer_fingerprint not in {None, fingerprint}:
        return ItemRejectedError(
            ErrorCode.TOKENIZER_MISMATCH,
            f"the ids belong to tokenizer {item.tokenizer_fingerprint}, the model's tokenizer is {fingerprint}",
        )
    offsets = item.token_offsets if isinstance(item, ScoreItem) else None
    is_end_only = offsets is not None and len(offsets) > 0 and item.response == ""
    if offsets is not None and item.response:
        problem = check_offsets(offsets, item.response)
        if problem is not None:
            return ItemRejectedError(ErrorCode.BAD_OFFSETS, problem)
    if is_end_only and any(span != (0, 0) for span in offsets or ()):
        return ItemRejectedError(ErrorCode.BAD_OFFSETS, "the response is empty, so its token offsets must be [0, 0]")
    prompt: Any = item.prompt_ids if item.prompt_ids is not None else item.prompt
    if isinstance(item.prompt, list):
        prompt = [message.model_dump() for message in item.prompt]
    response: Any = item.response_ids if item.response_ids is not None else item.response
    try:
        return encoder.encode(
            Item(prompt, response, item.finished, on_too_long, has_only_end=is_end_only, tools=item.tools)
        )
    except RedlineModelError as error:
        return error
