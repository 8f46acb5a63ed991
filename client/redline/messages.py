"""Messages of a conversation in the form that every reader keeps them in; pure, standard library only.

A message is ``{"role": text, "content": text}`` and, where they hold something, further fields: ``tool_calls``,
``reasoning_content``, ``name`` and so on. Chat templates differ in which of them they use, so they are passed on as
they are, and what a template does not use is refused where the template is known (``redline_model.encoding.encoder``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

Message = dict[str, Any]
# one user message as text, or a conversation that ends before the response
Prompt = str | Sequence[Message]

MAX_INTEGER_BITS = 256  # written out a longer one would be a text of any length
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})
# Fields whose values are part of what was said: a reader that leaves one out reads another conversation. Any other
# field (an id, a name, a weight) is passed on too and may be left unused.
CONTENT_FIELDS = (
    *("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking", "refusal"),
    *("images", "image", "audio", "video", "documents"),
)


class MessageError(ValueError):
    """A value is no message; the text says why, without naming the place."""


def normalized(value: Any) -> Message:
    """One message: content parts as one text, and without fields that hold nothing (None, "", [] or {}).

    Content may be text, a list of ``{"type": "text", "text": ...}`` parts, or missing where a content field (a tool
    call, say) stands in its place; it is "" then.

    Raises:
        MessageError: no role, no content, or a part that is not text (an image, say), named in the message.
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
    raise MessageError(f"holds a content part of type {str(kind)[:40]!r}; only text is read")


def content_fields(message: Message) -> list[str]:
    """Names of the message's fields, beside ``content``, that are part of what was said."""
    return [name for name in CONTENT_FIELDS if name in message]


def json_size(value: Any, *, max_values: int, max_depth: int) -> int:
    """How many values (members, elements and single ones) a JSON value holds.

    Raises:
        MessageError: more than ``max_values``, nested deeper than ``max_depth``, a number that is not finite, an
            integer of more than ``MAX_INTEGER_BITS``, half a surrogate pair, or something that JSON does not know.
    """
    count = 0
    waiting = [(value, 0)]
    while waiting:
        one, depth = waiting.pop()
        count += 1
        if isinstance(one, (dict, list)):
            if depth >= max_depth:
                raise MessageError(f"holds values nested deeper than {max_depth}")
            if count + len(waiting) + len(one) > max_values:
                raise MessageError(f"holds more than {max_values} values")
            if isinstance(one, dict):
                for name in one:
                    _check_plain(name)
                waiting += [(inner, depth + 1) for inner in one.values()]
            else:
                waiting += [(inner, depth + 1) for inner in one]
        else:
            _check_plain(one)
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
        raise MessageError(f"holds a {type(value).__name__}, which is no JSON")
