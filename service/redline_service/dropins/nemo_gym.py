"""``POST /verify``, as NeMo-Gym's agents ask a resources server."""

from __future__ import annotations

import math
from typing import Any

from pydantic import BaseModel, ConfigDict

from redline.transcripts import BorderError, Exchange, as_item
from redline.wire import ChatMessage, ScoreItem
from redline_service.dropins.protocol import Reader, Scored


class NeMoGymBody(BaseModel):
    """A row of a data set with the conversation's ``response`` in the shape of OpenAI's Responses.

    Read in NeMo-Gym 0.5.1, ``base_resources_server.py``. Everything that came goes back, and ``reward`` with it. What
    precedes the assistant's last message is the prompt; reasoning and tool calls that stand between are left out.
    """

    model_config = ConfigDict(extra="allow")

    responses_create_params: dict[str, Any]
    response: dict[str, Any]

    def items(self, reader: Reader) -> list[ScoreItem]:
        """Raises BorderError."""
        given = self.responses_create_params.get("input")
        turns = [
            _message(one) for one in _list([{"role": "user", "content": given}] if isinstance(given, str) else given)
        ]
        if isinstance(instructions := self.responses_create_params.get("instructions"), str):
            turns.insert(0, ChatMessage(role="system", content=instructions))
        said = [_message(one) for one in _list(self.response.get("output")) if _is_message(one)]
        if not said or said[-1].role != "assistant":
            raise BorderError("the response's output does not end with an assistant's message")
        prompt = [*turns, *said[:-1]]
        if not prompt:
            raise BorderError("responses_create_params has no input")
        is_finished = self.response.get("status") != "incomplete"
        return [as_item(Exchange(prompt, said[-1].content, is_finished))]

    def reply(self, scored: Scored) -> Any:
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
        raise BorderError("the input or the output is no list")
    return given or []


def _is_message(one: Any) -> bool:
    return isinstance(one, dict) and one.get("type", "message") == "message" and "role" in one


def _message(one: Any) -> ChatMessage:
    if not _is_message(one):
        raise BorderError("the input holds something that is no message")
    content = one.get("content")
    if isinstance(content, list):
        texts = [part.get("text") if isinstance(part, dict) else None for part in content]
        content = "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else None
    if not isinstance(content, str):
        raise BorderError("a message holds something that is no text")
    role = {"developer": "system"}.get(str(one["role"]), str(one["role"]))
    return ChatMessage(role=role, content=content)
