"""Items before and after encoding: what a caller gives, and its token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from redline.messages import Prompt
from redline.spans import Span


class Item(NamedTuple):
    """A (prompt, response) pair from a caller: text, or ids of the model's own tokenizer.

    ``tools``: tools for the model's chat template.
    """

    prompt: Prompt | Sequence[int]
    response: str | Sequence[int]
    is_finished: bool = True
    on_too_long: Literal["error", "truncate"] = "error"
    has_only_end: bool = False  # the response is empty text and means the end-of-sequence token alone
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class EncodedItem:
    """An item as ids, ready for any scorer.

    ``prefix_ids``: the rendered prompt up to the response. ``response_ids``: the response without its end token.
    ``target_ids``: ``response_ids`` and, if the response is finished, the end token; the T tokens that get rewards.
    ``instruction_ids``: between the response and its rewrite. ``offsets``: one span per target token.
    """

    prefix_ids: list[int]
    response_ids: list[int]
    instruction_ids: list[int]
    target_ids: list[int]
    offsets: list[Span]
    text: str = field(repr=False)
    is_finished: bool = True
    is_truncated: bool = False
