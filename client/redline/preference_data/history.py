"""Columns beside a prompt that hold earlier turns of its conversation: used where that is certain; pure.

Whatever else would leave a part of the conversation out is refused.
"""

from __future__ import annotations

import re
from typing import Any

from redline.files.row_files import BadRowError
from redline.messages import Message, Prompt
from redline.preference_data.turns import messages_of


def with_history(prompt: Prompt, value: Any) -> Prompt:
    """The prompt behind the turns of a ``history`` column, which it may hold already.

    Args:
        value: a list of ``[question, answer]`` texts (LLaMA-Factory's), or of messages.

    Raises:
        BadRowError: it is something else, or where its turns belong is not certain.
    """
    if isinstance(value, str):
        if value.strip() and not _holds(prompt, [{"role": "user", "content": value}]):
            raise BadRowError("'history' holds text that is no part of the prompt")
        return prompt
    if not isinstance(value, list) or not value:
        return prompt
    if all(isinstance(turn, list) and len(turn) == 2 and all(isinstance(t, str) for t in turn) for turn in value):
        turns = [{"role": role, "content": t} for turn in value for role, t in zip(_ROLES, turn, strict=True)]
    elif all(isinstance(turn, dict) for turn in value):
        turns = messages_of(value, "history")
    else:
        raise BadRowError("'history' is no list of [question, answer] texts")
    if _holds(prompt, turns):
        return prompt
    system, rest = _system_and_rest(turns_of(prompt))
    is_one_question = len(rest) == 1 and rest[0]["role"] == "user"
    if not is_one_question or turns[-1]["role"] != "assistant" or (system and turns[0]["role"] == "system"):
        raise BadRowError("'history' is no part of the prompt, and where its turns belong is not said")
    return [*system, *turns, *rest]


_ROLES = ("user", "assistant")


def with_conversation(prompt: Prompt, turns: list[Message], field: str, *, is_alone: bool) -> Prompt:
    """The prompt, or the conversation of another column where that ends with the prompt and begins earlier.

    A last turn of the assistant is the response to the conversation, not a part of it.

    Args:
        is_alone: no response stands beside the prompt, so that the conversation may go on behind it.

    Raises:
        BadRowError: the conversation is not the prompt's, or more than one reply follows the prompt in it.
    """
    asked = turns[:-1] if turns and turns[-1]["role"] == "assistant" else turns
    if not asked or _holds(prompt, asked):
        return prompt
    own = turns_of(prompt)
    if _same(asked[-len(own) :], own):
        return asked
    system, rest = _system_and_rest(own)
    if system and rest and asked[0]["role"] != "system" and _same(asked[-len(rest) :], rest):
        return [*system, *asked]
    if is_alone and _same(turns[: len(own)], own):
        return prompt
    raise BadRowError(f"'{field}' holds a conversation that is no part of the prompt; which is the prompt is not said")


def turns_of(prompt: Prompt) -> list[Message]:
    """A prompt as turns; a text is the user's."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)


def bare(turn: Message) -> Message:
    """A turn without the white space around its content."""
    return {**turn, "content": turn["content"].strip()}


def _same(some: list[Message], others: list[Message]) -> bool:
    return [bare(turn) for turn in some] == [bare(turn) for turn in others]


def _system_and_rest(turns: list[Message]) -> tuple[list[Message], list[Message]]:
    count = 1 if turns and turns[0]["role"] == "system" else 0
    return turns[:count], turns[count:]


def _holds(prompt: Prompt, turns: list[Message]) -> bool:
    """Whether ``turns`` are some of the prompt's, or their words stand in one text of it, in order."""
    own = turns_of(prompt)
    length = len(turns)
    if any(_same(own[at : at + length], turns) for at in range(len(own) - length + 1)):
        return True
    return any(_has_words(turn["content"], [one["content"] for one in turns]) for turn in own)


def _has_words(text: str, parts: list[str]) -> bool:
    at = 0
    for part in parts:
        found = re.compile(rf"(?<!\w){re.escape(part.strip())}(?!\w)").search(text, at)
        if found is None:
            return False
        at = found.end()
    return True
