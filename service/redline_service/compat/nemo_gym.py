"""``POST /verify``, the request of NeMo-Gym's agents to a resources server."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from redline.text.chat_markup import ParsedConversation, PromptBoundaryError, to_score_item
from redline.wire import ChatMessage, ScoreItem
from redline_service.compat.base import CompatResult, ConversationParser
from redline_service.compat.openai_responses import to_chat_messages, to_chat_tool


class NeMoGymRequest(BaseModel):
    """A row of a data set with ``response`` in the format of OpenAI's Responses API.

    Source: NeMo-Gym 0.5.1, ``base_resources_server.py``. The reply is the request's body with a field ``reward`` added.
    Everything before the assistant's last message is the prompt, including tool calls, their outputs and reasoning. The
    reasoning of the last message itself is not part of the response.
    """

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item. Raises PromptBoundaryError."""
        input_items = self.responses_create_params.get("input")
        if isinstance(input_items, str):
            input_items = [{"role": "user", "content": input_items}]
        messages = to_chat_messages(_as_list(input_items))
        if isinstance(instructions := self.responses_create_params.get("instructions"), str):
            messages.insert(0, ChatMessage(role="system", content=instructions))
        output = to_chat_messages(_as_list(self.response.get("output")))
        if not output or output[-1].role != "assistant" or "tool_calls" in (output[-1].model_extra or {}):
            raise PromptBoundaryError("the response's output does not end with a message of the assistant")
        prompt = [*messages, *output[:-1]]
        if not prompt:
            raise PromptBoundaryError("responses_create_params has no input")
        is_finished = self.response.get("status") != "incomplete"
        tools = [to_chat_tool(tool) for tool in _as_list(self.responses_create_params.get("tools"))]
        return [to_score_item(ParsedConversation(prompt, output[-1].content, is_finished), tools=tools or None)]

    def reply(self, result: CompatResult) -> Any:
        """The request's body with its reward. Numbers that JSON cannot represent are returned as null."""
        declared = {"responses_create_params": self.responses_create_params, "response": self.response}
        return {**_finite({**declared, **(self.model_extra or {})}), "reward": result.scores[0]}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(child) for key, child in value.items()}
    if isinstance(value, list):
        return [_finite(child) for child in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_list(value: Any) -> list[Any]:
    if value is not None and not isinstance(value, list):
        raise PromptBoundaryError("input, output and tools must be lists")
    return value or []
