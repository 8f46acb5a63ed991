"""``POST /verify``, as NeMo-Gym's agents ask a resources server."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from redline.text.chat_markup import ParsedConversation, PromptBoundaryError, to_score_item
from redline.wire import ChatMessage, ScoreItem
from redline_service.compat.base import ConversationParser, ScoredBatch
from redline_service.compat.openai_responses import tool_of as _tool
from redline_service.compat.openai_responses import turns_of


class NeMoGymBody(BaseModel):
    """A row of a data set with the conversation's ``response`` in the shape of OpenAI's Responses.

    Read in NeMo-Gym 0.5.1, ``base_resources_server.py``. Everything that came goes back, and ``reward`` with it. What
    precedes the assistant's last message is the prompt, tool calls, their outputs and earlier thoughts included; what
    was thought for the last message itself is no part of the response.
    """

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        given = self.responses_create_params.get("input")
        turns = turns_of(_list([{"role": "user", "content": given}] if isinstance(given, str) else given))
        if isinstance(instructions := self.responses_create_params.get("instructions"), str):
            turns.insert(0, ChatMessage(role="system", content=instructions))
        said = turns_of(_list(self.response.get("output")))
        if not said or said[-1].role != "assistant" or "tool_calls" in (said[-1].model_extra or {}):
            raise PromptBoundaryError("the response's output does not end with an assistant's message")
        prompt = [*turns, *said[:-1]]
        if not prompt:
            raise PromptBoundaryError("responses_create_params has no input")
        is_finished = self.response.get("status") != "incomplete"
        tools = [_tool(one) for one in _list(self.responses_create_params.get("tools"))]
        return [to_score_item(ParsedConversation(prompt, said[-1].content, is_finished), tools=tools or None)]

    def reply(self, scored: ScoredBatch) -> Any:
        """The body as it came, and its reward. Numbers beyond what JSON can spell come back as null."""
        given = {"responses_create_params": self.responses_create_params, "response": self.response}
        return {**_finite({**given, **(self.model_extra or {})}), "reward": scored.scores[0]}


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _list(given: Any) -> list[Any]:
    if given is not None and not isinstance(given, list):
        raise PromptBoundaryError("the input or the output is no list")
    return given or []
