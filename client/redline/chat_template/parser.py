"""Parse a text that was rendered with the model's own chat template back into messages.

The template is rendered once with placeholders as contents; the text between the placeholders gives the boundaries of
turns. A text is split at these boundaries, and the turns are accepted only if the template renders them to the same
text again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from redline.chat_template.compile import GENERATION_END, GENERATION_START
from redline.chat_template.errors import RenderError
from redline.chat_template.renderer import ChatRenderer
from redline.chat_template.special_tokens import Placeholders
from redline.messages import Message

_MAX_TURNS = 512


class _Boundaries(NamedTuple):
    """What a template writes between contents.

    ``start``: before the first content. ``after_user``: between a question and its answer. ``after_answer``: between
    an answer and the next question. ``after_system``: between a system prompt and a question; None if the first content
    is not a system prompt.
    """

    start: str
    after_system: str | None
    after_user: str
    after_answer: str


class ChatTemplateParser:
    """Parses texts that were rendered with one chat template. Thread-safe."""

    def __init__(self, chat: ChatRenderer) -> None:
        self._chat = chat

    def parse_prompt(self, text: str) -> list[Message] | None:
        """The turns of a rendered prompt that ends where the assistant's turn begins; None for any other text."""
        body, is_opened = _without_end(text, self._opening)
        for boundaries in self._boundaries if is_opened else ():
            turns = self._turns(body, boundaries)
            if turns is not None and turns[-1]["role"] == "user" and self._rendered(turns) == text:
                return turns
        return None

    def parse_conversation(self, text: str) -> tuple[list[Message], str, bool, int] | None:
        """``(turns, answer, is_finished, start)`` of a whole conversation that ends with the assistant's answer.

        ``start``: where the answer begins in ``text``. None for any other text.
        """
        openings = {self._opening, self._before_answer, *(boundaries.after_user for boundaries in self._boundaries)} - {
            ""
        }
        candidates = [(text.rfind(opening) + len(opening), opening) for opening in openings if opening in text]
        for start, opening in sorted(candidates, reverse=True):
            body = text[: start - len(opening)]
            for boundaries in self._boundaries:
                turns = self._turns(body, boundaries)
                if turns is None or turns[-1]["role"] != "user":
                    continue
                answer, is_finished = self.strip_turn_end(text[start:])
                rendered = self._rendered([*turns, {"role": "assistant", "content": answer}], opens_turn=False)
                if text.startswith(self._rendered(turns) or "\0") or (rendered or "").startswith(text.rstrip()):
                    return turns, answer, is_finished, start
        return None

    def strip_turn_end(self, text: str) -> tuple[str, bool]:
        """``text`` without what closes the assistant's turn, and whether there was such an end."""
        for end in self.turn_ends:
            body, is_ended = _without_end(text, end)
            token = end.strip()
            if is_ended:
                position = len(body)
                if self._chat.special.pattern.fullmatch(token):
                    while position >= len(token) and body.startswith(token, position - len(token)):
                        position -= len(token)  # end tokens as padding
                return body[:position], True
        return text, False

    @cached_property
    def turn_ends(self) -> list[str]:
        """The texts that can close an answer, longest first: what the template writes after it, also stripped."""
        placeholders = Placeholders([])
        turns = [
            {"role": "user", "content": placeholders.code(0)},
            {"role": "assistant", "content": placeholders.code(1)},
        ]
        try:
            text = self._chat.render(turns, marks_generation=True)
        except RenderError:
            return []
        after = text.partition(placeholders.code(1))[2]
        marked = after.partition(GENERATION_END)[0] if GENERATION_END in after else ""
        after = after.replace(GENERATION_START, "").replace(GENERATION_END, "")
        return sorted(
            {end for end in (after, after.rstrip(), marked, marked.rstrip()) if end.strip()}, key=len, reverse=True
        )

    @cached_property
    def start_tokens(self) -> list[str]:
        """Special tokens that the template begins with."""
        matches = [self._chat.special.pattern.match(boundaries.start) for boundaries in self._boundaries]
        return list(dict.fromkeys(match[0] for match in matches if match))

    @cached_property
    def _opening(self) -> str:
        """What the template writes after a question to open the assistant's turn."""
        placeholders = Placeholders([])
        try:
            text = self._chat.render([{"role": "user", "content": placeholders.code(0)}], opens_turn=True)
        except RenderError:
            return ""
        return text.partition(placeholders.code(0))[2]

    @cached_property
    def _before_answer(self) -> str:
        """What the template writes between a question and the last answer."""
        texts = self._chat.texts_around(("user", "assistant"))
        return texts[1] if texts is not None else ""

    @cached_property
    def has_space_before_answer(self) -> bool:
        """Whether the template writes a space between what opens the assistant's turn and the answer."""
        opening = self._opening
        return bool(opening) and self._before_answer == opening + " "

    @cached_property
    def _boundaries(self) -> list[_Boundaries]:
        boundaries: list[_Boundaries] = []
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",)):
            texts = self._chat.texts_around(roles)
            if texts is None:
                continue
            if len(roles) == 4:
                boundaries.append(_Boundaries(texts[0], texts[1], texts[2], texts[3]))
            elif len(roles) == 3:
                boundaries.append(_Boundaries(texts[0], None, texts[1], texts[2]))
            elif not boundaries:  # a template for single questions
                boundaries.append(_Boundaries(texts[0], None, self._opening, ""))
        # the longest start is tried first; of equal ones, the one that does not take a user's text for a system prompt
        return sorted(boundaries, key=lambda each: (-len(each.start), each.after_system is not None))

    def _turns(self, body: str, boundaries: _Boundaries) -> list[Message] | None:
        """The turns of a text without its end, by the boundaries alone."""
        if not body.startswith(boundaries.start):
            return None
        position = len(boundaries.start)
        turns: list[Message] = []
        role = "user"
        if boundaries.after_system is not None:
            end = body.find(boundaries.after_system, position) if boundaries.after_system else -1
            if end < 0:
                return None
            turns.append({"role": "system", "content": body[position:end]})
            position = end + len(boundaries.after_system)
        while len(turns) < _MAX_TURNS:
            boundary = boundaries.after_user if role == "user" else boundaries.after_answer
            end = body.find(boundary, position) if boundary else -1
            turns.append({"role": role, "content": body[position:] if end < 0 else body[position:end]})
            if end < 0:
                return turns
            position = end + len(boundary)
            role = "assistant" if role == "user" else "user"
        return None

    def _rendered(self, messages: Sequence[Message], *, opens_turn: bool = True) -> str | None:
        try:
            return self._chat.render(messages, opens_turn=opens_turn)
        except RenderError:
            return None


def _without_end(text: str, end: str) -> tuple[str, bool]:
    return (text[: len(text) - len(end)], True) if end and text.endswith(end) else (text, False)
