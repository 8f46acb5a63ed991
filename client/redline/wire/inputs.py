"""What callers give: texts, ids and the messages of a conversation, each within bounds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, model_validator

from redline.messages import MessageError, json_size, normalized
from redline.wire.base import MAX_FIELDS, FirstError, WireModel

# of what an item's messages hold beside their texts, and of its tools
MAX_VALUES = 10_000
MAX_DEPTH = 32


def _unicode(text: str) -> str:
    """JSON can carry half a surrogate pair, which is no text and breaks tokenizers and logs alike."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode: it holds half a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_unicode)]

TokenIds = Annotated[list[int], FirstError]


def _bounded(value: Any) -> Any:
    json_size(value, max_values=MAX_VALUES, max_depth=MAX_DEPTH)
    return value


Tools = Annotated[list[dict[str, Any]], FirstError, BeforeValidator(_bounded)]


class ChatMessage(WireModel):
    """One turn of a conversation.

    Further fields (``tool_calls``, ``reasoning_content``, ``name`` and so on) are handed to the model's chat template;
    one that is part of what was said and that the template does not use is refused. ``content`` may also be a list of
    text parts, or missing beside a field that stands in its place.
    """

    model_config = ConfigDict(extra="allow")

    role: Text
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _normal(cls, data: Any) -> Any:
        if not isinstance(data, dict) or (set(data) == {"role", "content"} and isinstance(data["content"], str)):
            return data
        if len(data) > MAX_FIELDS:  # reported by _few_fields
            return data
        _bounded(data)
        try:
            return normalized(data)
        except MessageError as error:
            raise ValueError(str(error).removeprefix("holds ")) from error


# A prompt as callers of the client give it; a message is checked when it becomes a ``ChatMessage``.
PromptInput = str | Sequence[ChatMessage | dict[str, Any]]


def check_amount(messages: Sequence[ChatMessage], tools: Sequence[Any]) -> None:
    """Raise ValueError where an item holds more values than are read."""
    beside = [message.model_extra for message in messages if message.model_extra]
    json_size([beside, list(tools)] if beside or tools else [], max_values=MAX_VALUES, max_depth=MAX_DEPTH + 3)
