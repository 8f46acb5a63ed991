"""An item of the wire -> an item of the kernel, or why it cannot be one. Tokenises: not for the event loop."""

from __future__ import annotations

from typing import Any

from redline.text.alignment import check_offsets
from redline.wire import ErrorCode, OnTooLong, ResponseItem, ScoreItem
from redline_model.encoding.encoder import EncodedItem, Encoder, Item
from redline_model.errors import RedlineModelError
from redline_service.errors import ItemRejectedError


def encoded(
    item: ResponseItem, on_too_long: OnTooLong, encoder: Encoder, fingerprint: str
) -> EncodedItem | RedlineModelError | ItemRejectedError:
    """``item`` as ids. ``fingerprint``: of the encoder's tokenizer."""
    if item.tokenizer_fingerprint not in {None, fingerprint}:
        return ItemRejectedError(
            ErrorCode.TOKENIZER_MISMATCH,
            f"the ids are of tokenizer {item.tokenizer_fingerprint}, the model's is {fingerprint}",
        )
    offsets = item.token_offsets if isinstance(item, ScoreItem) else None
    is_end_only = offsets is not None and len(offsets) > 0 and item.response == ""
    if offsets is not None and item.response:
        problem = check_offsets(offsets, item.response)
        if problem is not None:
            return ItemRejectedError(ErrorCode.BAD_OFFSETS, problem)
    if is_end_only and any(span != (0, 0) for span in offsets or ()):
        return ItemRejectedError(ErrorCode.BAD_OFFSETS, "the response is empty, its spans are not")
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
