"""Converts items of OpenAI's Responses API (messages, function calls, their outputs, reasoning) to chat messages."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from redline.text.chat_markup import PromptBoundaryError
from redline.wire import ChatMessage
from redline.wire.inputs import MAX_VALUES


def to_chat_messages(items: Sequence[Any]) -> list[ChatMessage]:
    """The chat messages for ``items``.

    Consecutive function calls become one message of the assistant, together with a text directly before them.
    Reasoning is added to the assistant's next message; it is dropped if it has no text or if no such message follows.

    Raises:
        PromptBoundaryError: an item has another type, or there are more than ``MAX_VALUES`` items.
        pydantic.ValidationError: a message is not valid on the wire, see ``ChatMessage``.
    """
    if len(items) > MAX_VALUES:
        raise PromptBoundaryError(f"the conversation has {len(items)} items; at most {MAX_VALUES} are allowed")
    messages: list[dict[str, Any]] = []
    pending_reasoning: list[str] = []
    for item in items:
        kind = item.get("type") or "message" if isinstance(item, dict) else None
        if kind == "reasoning":
            pending_reasoning.append(_reasoning_text(item))
            continue
        message = _message_fields(item, kind)
        if message["role"] == "assistant":
            if reasoning := "".join(pending_reasoning):
                message["reasoning_content"] = reasoning
            if "tool_calls" in message and messages and messages[-1]["role"] == "assistant" and not reasoning:
                messages[-1].setdefault("tool_calls", []).extend(message["tool_calls"])
                message = {}
            pending_reasoning.clear()
        if message:
            messages.append(message)
    return [ChatMessage.model_validate(message) for message in messages]


def to_chat_tool(tool: Any) -> Any:
    """A tool in the format of chat templates: ``{"type": "function", "function": {"name", ...}}``."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool:
        return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    return tool


def _message_fields(item: Any, kind: Any) -> dict[str, Any]:
    if kind == "message" and "role" in item:
        content = item.get("content")
        if not isinstance(content, (str, list)):
            raise PromptBoundaryError("the content of a message is neither a text nor a list of parts")
        role = str(item["role"])
        return {"role": {"developer": "system"}.get(role, role), "content": content}
    call_id = item["call_id"] if isinstance(item, dict) and isinstance(item.get("call_id"), str) else None
    if kind == "function_call" and isinstance(item.get("name"), str):
        function = {"name": item["name"], "arguments": _parsed_arguments(item.get("arguments"))}
        call = {"type": "function", "function": function}
        return {
            "role": "assistant",
            "content": "",
            "tool_calls": [call if call_id is None else {"id": call_id, **call}],
        }
    if kind == "function_call_output":
        output = item.get("output")
        content = output if isinstance(output, (str, list)) else json.dumps(output)
        message = {"role": "tool", "content": content}
        return message if call_id is None else {**message, "tool_call_id": call_id}
    raise PromptBoundaryError(
        f"the conversation has an item of type {str(kind)[:40]!r}; messages, function calls, their outputs and "
        "reasoning are supported"
    )


def _parsed_arguments(arguments: Any) -> Any:
    """Arguments are sent as a JSON text, but chat templates read objects. A text that is not JSON stays a text."""
    try:
        return json.loads(arguments) if isinstance(arguments, str) else arguments
    except (ValueError, RecursionError):
        return arguments


def _reasoning_text(item: dict[str, Any]) -> str:
    parts = [part for name in ("content", "summary") if isinstance(item.get(name), list) for part in item[name]]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
