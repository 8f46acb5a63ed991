"""Adds earlier turns from columns such as ``history`` to a prompt, if they certainly belong to it; pure.

A row in which a part of the conversation would be lost is refused.
"""

from __future__ import annotations

import re
from typing import Any

from redline.files.row_files import BadRowError
from redline.messages import Message, Prompt
from redline.preference_data.turns import parse_messages


def with_history(prompt: Prompt, value: Any) -> Prompt:
    """The prompt after the turns of a ``history`` column, unless it already contains them.

    Args:
        value: a list of ``[question, answer]`` texts (LLaMA-Factory's), or of messages.

    Raises:
        BadRowError: the column has another format, or the position of its turns is not certain.
    """
    if isinstance(value, str):
        if value.strip() and not _contains(prompt, [{"role": "user", "content": value}]):
            raise BadRowError("'history' has text that is not part of the prompt")
        return prompt
    if not isinstance(value, list) or not value:
        return prompt
    if all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in value):
        turns = [{"role": role, "content": t} for turn in value for role, t in zip(_ROLES, turn, strict=True)]
    elif all(isinstance(turn, dict) for turn in value):
        turns = parse_messages(value, "history")
    else:
        raise BadRowError("'history' must be a list of [question, answer] texts")
    if _contains(prompt, turns):
        return prompt
    system, rest = _system_and_rest(as_turns(prompt))
    is_one_question = len(rest) == 1 and rest[0]["role"] == "user"
    if not is_one_question or turns[-1]["role"] != "assistant" or (system and turns[0]["role"] == "system"):
        raise BadRowError("'history' is not part of the prompt, and the position of its turns is unknown")
    return [*system, *turns, *rest]


_ROLES = ("user", "assistant")


def with_conversation(prompt: Prompt, turns: list[Message], field: str, *, has_no_response: bool) -> Prompt:
    """The prompt, or the conversation of another column if that ends with the prompt and begins earlier.

    If its last turn is the assistant's, that is the response and not part of the prompt.

    Args:
        is_alone: no response stands beside the prompt, so that the conversation may go on behind it.

    Raises:
        BadRowError: the conversation does not contain the prompt, or continues for more than one reply after it.
    """
    conversation = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
    if not conversation or _contains(prompt, conversation):
        return prompt
    prompt_turns = as_turns(prompt)
    if _same(conversation[-len(prompt_turns) :], prompt_turns):
        return conversation
    system, rest = _system_and_rest(prompt_turns)
    if system and rest and conversation[0]["role"] != "system" and _same(conversation[-len(rest) :], rest):
        return [*system, *conversation]
    if has_no_response and _same(turns[: len(prompt_turns)], prompt_turns):
        return prompt
    raise BadRowError(f"'{field}' has a conversation that differs from the prompt; keep the one that is the prompt")


def as_turns(prompt: Prompt) -> list[Message]:
    """A prompt as a list of turns; text becomes one user turn."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def bare(turn: Message) -> Message:
    """A turn without the white space around its content."""
    return {**turn, "content": turn["content"].strip()}


def _same(turns: list[Message], expected: list[Message]) -> bool:
    return [bare(turn) for turn in turns] == [bare(turn) for turn in expected]


def _system_and_rest(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    count = 1 if turns and turns[0]["role"] == "system" else 0
    return turns[:count], turns[count:]


def _contains(prompt: Prompt, turns: list[Message]) -> bool:
    """Whether ``turns`` are consecutive turns of the prompt, or appear in order within the text of one turn."""
    prompt_turns = as_turns(prompt)
    length = len(turns)
    if any(_same(prompt_turns[at : at + length], turns) for at in range(len(prompt_turns) - length + 1)):
        return True
    return any(
        _appear_in_order([turn["content"] for turn in turns], prompt_turn["content"]) for prompt_turn in prompt_turns
    )


def _appear_in_order(parts: list[str], text: str) -> bool:
    at = 0
    for part in parts:
        match = re.compile(rf"(?<!\w){re.escape(part.strip())}(?!\w)").search(text, at)
        if match is None:
            return False
        at = match.end()
    return True
