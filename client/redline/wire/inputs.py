"""Input types of requests: texts, token ids, messages and tools, each with limits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, model_validator

from redline.messages import MessageError, json_size, normalized
from redline.wire.base import MAX_FIELDS, FirstError, WireModel

# limits for the tools of an item and for the fields of its messages other than texts
MAX_VALUES = 10_000
MAX_DEPTH = 32


def _check_unicode(text: str) -> str:
    """Refuse half a surrogate pair, which JSON allows but which breaks tokenizers and logs."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("is not valid Unicode: it holds half a surrogate pair") from error
    return text


Text = Annotated[str, AfterValidator(_check_unicode)]

TokenIds = Annotated[list[int], FirstError]


def _check_size(value: Any) -> Any:
    json_size(value, max_values=MAX_VALUES, max_depth=MAX_DEPTH)
    return value


Tools = Annotated[list[dict[str, Any]], FirstError, BeforeValidator(_check_size)]


class ChatMessage(WireModel):
    """One turn of a conversation.

    Further fields (``tool_calls``, ``reasoning_content``, ``name`` and so on) are passed to the model's chat template;
    a field that is part of the conversation but not used by the template is refused. ``content`` may also be a list of
    text parts, or missing if there is a field such as ``tool_calls``.
    """

    model_config = ConfigDict(extra="allow")

    role: Text
    content: Text

    @model_validator(mode="before")
    @classmethod
    def _normalize(cls, data: Any) -> Any:
        if not isinstance(data, dict) or (set(data) == {"role", "content"} and isinstance(data["content"], str)):
            return data
        if len(data) > MAX_FIELDS:  # reported by _limit_fields
            return data
        _check_size(data)
        try:
            return normalized(data)
        except MessageError as error:
            raise ValueError(str(error).removeprefix("holds ")) from error


# A prompt as passed to the client; messages are validated when they become ``ChatMessage`` objects.
PromptInput = str | Sequence[ChatMessage | dict[str, Any]]


def check_amount(messages: Sequence[ChatMessage], tools: Sequence[Any]) -> None:
    """Raise ValueError if the messages and tools of an item have too many values."""
    extra_fields = [message.model_extra for message in messages if message.model_extra]
    json_size(
        [extra_fields, list(tools)] if extra_fields or tools else [], max_values=MAX_VALUES, max_depth=MAX_DEPTH + 3
    )
