"""Parses column values (messages, ShareGPT, HH-RLHF transcripts) into turns of a conversation; pure."""

from __future__ import annotations

import re
from typing import Any

from redline.files.row_files import BadRowError
from redline.messages import Message, MessageError, content_fields, normalized

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")
_HH_ROLE = {"Human": "user", "Assistant": "assistant"}
# role names of ShareGPT, whose messages are {"from": ..., "value": ...}
_SHAREGPT_ROLE = {"human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "system": "system"}


def parse_messages(value: Any, field: str) -> list[Message]:
    """Parse a list of messages, or one message. Raises BadRowError naming the field."""
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise BadRowError(f"'{field}' must be text or a list of messages, not {type(value).__name__}")
    try:
        return [normalized(_with_role(message)) for message in value]
    except MessageError as error:
        raise BadRowError(f"'{field}' {error}") from error


def _with_role(message: Any) -> Any:
    if not isinstance(message, dict) or "from" not in message or message.get("role") is not None:
        return message
    sender = message["from"]
    if not isinstance(sender, str) or sender not in _SHAREGPT_ROLE:
        raise MessageError(f"holds a message from {str(sender)[:40]!r}; known are {', '.join(_SHAREGPT_ROLE)}")
    rest = {name: field for name, field in message.items() if name not in {"from", "value", "role"}}
    return {"role": _SHAREGPT_ROLE[sender], "content": message.get("value"), **rest}


def is_transcript(value: Any) -> bool:
    """Whether ``value`` is a text of ``\\n\\nHuman:`` and ``\\n\\nAssistant:`` turns, as HH-RLHF writes them."""
    return isinstance(value, str) and _HH_TURN.match(value) is not None


def parse_transcript(text: str) -> list[Message]:
    """The turns of an HH-RLHF transcript."""
    parts = _HH_TURN.split(text)[1:]
    return [
        {"role": _HH_ROLE[role], "content": content.strip()}
        for role, content in zip(parts[::2], parts[1::2], strict=True)
    ]


def reply_text(message: Message, field: str) -> str:
    """The text of an assistant turn. Raises BadRowError if it has more than text."""
    more = content_fields(message)
    if more:
        raise BadRowError(f"'{field}' has {', '.join(map(repr, more))}; a response must be plain text")
    return str(message["content"])


def single_reply(value: Any, field: str) -> str:
    """The text of a reply, given as text or as one assistant turn. Raises BadRowError."""
    if isinstance(value, str):
        return value
    messages = parse_messages(value, field)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise BadRowError(f"'{field}' must be text or one assistant turn, it has {len(messages)} turns")
    return reply_text(messages[0], field)
