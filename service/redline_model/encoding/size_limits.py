"""Size limits of items, checked before anything is tokenised or rendered, so that refusing an item costs little."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from redline.messages import Message, Prompt, normalized
from redline_model.encoding.items import Item
from redline_model.errors import TooLongError

# A prompt is cut to this many characters more than needed, because the first tokens after a cut may differ.
_SPARE_CHARS = 1024
_DIGITS_PER_BIT = math.log10(2)
_FLOAT_CHARS = 24  # the longest text of a float


def limit_item(item: Item, max_tokens: int, max_chars: int) -> tuple[Item, bool]:
    """``item`` within the size limits, and whether the oldest part of its prompt was cut.

    Args:
        max_tokens: the longest sequence that the model reads.
        max_chars: a text with more characters certainly has more than ``max_tokens`` tokens.

    Raises:
        TooLongError: the response is too long, or the prompt is and truncation is not allowed.
    """
    is_text = isinstance(item.response, str)
    if len(item.response) > (max_chars if is_text else max_tokens + 1):
        unit = "characters" if is_text else "ids"
        raise TooLongError(f"the response has {len(item.response)} {unit}; the model reads {max_tokens} tokens")
    if isinstance(item.prompt, str):
        excess = len(item.prompt) - max_chars
    elif item.prompt and isinstance(item.prompt[0], int):
        excess = len(item.prompt) - max_tokens
    else:
        messages: Sequence[Message] = item.prompt  # type: ignore[assignment]
        size = sum(map(_size_without_content, messages)) + _size(item.tools)
        if len(messages) > max_tokens:
            raise TooLongError(f"the prompt has {len(messages)} messages; the model reads {max_tokens} tokens")
        if size > max_chars:
            raise TooLongError(
                f"the prompt's messages and tools have about {size} characters beside their contents; "
                f"the model reads {max_tokens} tokens"
            )
        excess = sum(_size(message.get("content")) for message in messages) - max_chars
    if excess <= 0:
        return item, False
    if item.on_too_long == "error":
        raise TooLongError(f"the prompt is far longer than the {max_tokens} tokens that the model reads")
    excess = max(0, excess - _SPARE_CHARS)
    return item._replace(prompt=_without_oldest(item.prompt, excess)), excess > 0


def _size(value: Any) -> int:
    """About how many characters a JSON value has; a bracket counts as one."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return 1 + sum(_size(name) + _size(element) for name, element in value.items())
    if isinstance(value, (list, tuple)):
        return 1 + sum(map(_size, value))
    if isinstance(value, int):
        return 1 + int(value.bit_length() * _DIGITS_PER_BIT)
    return _FLOAT_CHARS if isinstance(value, float) else int(value is not None)


def _size_without_content(message: Message) -> int:
    return sum(_size(value) for name, value in message.items() if name != "content")


def _without_oldest(prompt: Prompt | Sequence[int], excess: int) -> Any:
    """``prompt`` without its first ``excess`` characters (or ids) of content; no message is removed."""
    if isinstance(prompt, str) or isinstance(prompt[0], int):
        return prompt[excess:]
    shortened: list[Message] = []
    for message in prompt:
        content = normalized(message)["content"]
        shortened.append({**message, "content": content[excess:]})  # type: ignore[dict-item]
        excess = max(0, excess - len(content))
    return shortened
