"""Normalizes chat messages; pure, standard library only.

A message is ``{"role": text, "content": text}`` and, if they are not empty, further fields: ``tool_calls``,
``reasoning_content``, ``name`` and so on. Chat templates differ in which of them they use, so they are passed on
unchanged. A field that the model's template does not use is refused by the service
(``redline_model.encoding.encoder``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
# one user message as text, or a conversation that ends before the response
Prompt = str | Sequence[Message]

MAX_INTEGER_BITS = 256  # a longer integer would be a text of any length in JSON
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
# Fields that are part of the conversation: leaving one out changes what is scored. Other fields (an id, a name, a
# weight) are passed on too and may stay unused.
CONTENT_FIELDS = (
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal"),
    *("images", "image", "audio", "video", "documents"),
)


class MessageError(ValueError):
    """A value is not a valid message; the text is the reason, without the position."""


def normalized(value: Any) -> Message:
    """Normalize a message: content parts become one text, and empty fields (None, "", [] or {}) are removed.

    Content may be text, a list of ``{"type": "text", "text": ...}`` parts, or missing if there is a content field such
    as a tool call; it is "" then.

    Raises:
        MessageError: no role, no content, or a part that is not text, such as an image.
    """
    if not isinstance(value, dict):
        raise MessageError("holds a message that is not an object")
    role = value.get("role")
    if not isinstance(role, str):
        raise MessageError("holds a message without a text 'role'")
    rest = {
        str(name): field for name, field in value.items() if name not in {"role", "content"} and not _is_empty(field)
    }
    content = value.get("content")
    if content is None:
        if not any(name in rest for name in CONTENT_FIELDS):
            raise MessageError("holds a message without 'content'")
        content = ""
    if isinstance(content, list):
        content = "".join(_text_of_part(part) for part in content)
    if not isinstance(content, str):
        raise MessageError("holds a message whose 'content' is neither text nor a list of text parts")
    return {"role": role, "content": content, **rest}


def _is_empty(value: Any) -> bool:
    return value is None or (isinstance(value, (str, list, dict)) and not value)


def _text_of_part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    text = part.get("text") if isinstance(part, dict) else None
    if isinstance(kind, str) and kind in _TEXT_PARTS and isinstance(text, str):
        return text
    raise MessageError(f"holds a content part of type {str(kind)[:40]!r}; only text is supported")


def content_fields(message: Message) -> list[str]:
    """Names of the message's fields, other than ``content``, that are part of the conversation."""
    return [name for name in CONTENT_FIELDS if name in message]


def json_size(value: Any, *, max_values: int, max_depth: int) -> int:
    """Number of values in a JSON value: itself, and all members and elements inside it.

    Raises:
        MessageError: more than ``max_values``, nested deeper than ``max_depth``, a number that is not finite, an
            integer of more than ``MAX_INTEGER_BITS``, half a surrogate pair, or a type that JSON does not have.
    """
    count = 0
    pending = [(value, 0)]
    while pending:
        current, depth = pending.pop()
        count += 1
        if isinstance(current, (dict, list)):
            if depth >= max_depth:
                raise MessageError(f"holds values nested deeper than {max_depth}")
            if count + len(pending) + len(current) > max_values:
                raise MessageError(f"holds more than {max_values} values")
            if isinstance(current, dict):
                for name in current:
                    _check_plain(name)
                pending += [(inner, depth + 1) for inner in current.values()]
            else:
                pending += [(inner, depth + 1) for inner in current]
        else:
            _check_plain(current)
    return count


def _check_plain(value: Any) -> None:
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise MessageError("holds text that is not valid Unicode: half a surrogate pair") from error
    elif isinstance(value, float) and not math.isfinite(value):
        raise MessageError("holds a number that is not finite")
    elif isinstance(value, int) and value.bit_length() > MAX_INTEGER_BITS:
        raise MessageError(f"holds an integer of more than {MAX_INTEGER_BITS} bits")
    elif value is not None and not isinstance(value, (bool, int, float)):
        raise MessageError(f"holds a {type(value).__name__}, which is not JSON")
