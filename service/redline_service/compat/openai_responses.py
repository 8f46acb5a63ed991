"""Items of OpenAI's Responses (messages, calls of functions, what they gave, thoughts) as turns of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from redline.text.chat_markup import PromptBoundaryError
from redline.wire import ChatMessage
from redline.wire.inputs import MAX_VALUES


def turns_of(items: Sequence[Any]) -> list[ChatMessage]:
    """The turns that ``items`` make.

    Calls in a row are one turn of the assistant, with the text before them if there is one; a thought goes with the
    turn behind it, and one without text, or behind which there is none, is left out.

    Raises:
        PromptBoundaryError: an item is of another type, or there are more than ``MAX_VALUES``.
        pydantic.ValidationError: a message is none of the wire's, see ``ChatMessage``.
    """
    if len(items) > MAX_VALUES:
        raise PromptBoundaryError(f"the conversation holds {len(items)} items; at most {MAX_VALUES} are read")
    turns: list[dict[str, Any]] = []
    thoughts: list[str] = []
    for one in items:
        kind = one.get("type") or "message" if isinstance(one, dict) else None
        if kind == "reasoning":
            thoughts.append(_thought(one))
            continue
        turn = _turn(one, kind)
        if turn["role"] == "assistant":
            if thought := "".join(thoughts):
                turn["reasoning_content"] = thought
            if "tool_calls" in turn and turns and turns[-1]["role"] == "assistant" and not thought:
                turns[-1].setdefault("tool_calls", []).extend(turn["tool_calls"])
                turn = {}
            thoughts.clear()
        if turn:
            turns.append(turn)
    return [ChatMessage.model_validate(turn) for turn in turns]


def tool_of(tool: Any) -> Any:
    """A tool as chat templates read it: ``{"type": "function", "function": {"name", ...}}``."""
    if isinstance(tool, dict) and tool.get("type") == "function" and "function" not in tool:
        return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
    return tool


def _turn(one: Any, kind: Any) -> dict[str, Any]:
    if kind == "message" and "role" in one:
        content = one.get("content")
        if not isinstance(content, (str, list)):
            raise PromptBoundaryError("a message holds something that is no text")
        return {"role": {"developer": "system"}.get(str(one["role"]), str(one["role"])), "content": content}
    if kind == "function_call" and isinstance(one.get("name"), str):
        call = {"type": "function", "function": {"name": one["name"], "arguments": _arguments(one.get("arguments"))}}
        named = {"id": one["call_id"]} if isinstance(one.get("call_id"), str) else {}
        return {"role": "assistant", "content": "", "tool_calls": [{**named, **call}]}
    if kind == "function_call_output":
        output = one.get("output")
        named = {"tool_call_id": one["call_id"]} if isinstance(one.get("call_id"), str) else {}
        return {"role": "tool", "content": output if isinstance(output, (str, list)) else json.dumps(output), **named}
    raise PromptBoundaryError(f"the conversation holds an item of type {str(kind)[:40]!r}, which is no message")


def _arguments(given: Any) -> Any:
    """Arguments come as JSON in a text; templates read objects."""
    try:
        return json.loads(given) if isinstance(given, str) else given
    except (ValueError, RecursionError):
        return given


def _thought(one: dict[str, Any]) -> str:
    parts = [part for name in ("content", "summary") if isinstance(one.get(name), list) for part in one[name]]
    texts = [part.get("text") for part in parts if isinstance(part, dict)]
    return "".join(text for text in texts if isinstance(text, str))
