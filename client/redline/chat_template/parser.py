"""A text that was rendered with the model's own chat template, read back by what the template writes around turns.

The template is rendered with codes in the places of the contents; what stands between them are the borders. A text is
cut at these, and the turns are accepted only if the template renders them to that same text again.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

from redline.chat_template.compile import GENERATION_END, GENERATION_START
from redline.chat_template.errors import RenderError
from redline.chat_template.renderer import ChatRenderer
from redline.chat_template.special_tokens import Marks
from redline.messages import Message

_MAX_TURNS = 512


class _Borders(NamedTuple):
    """``start``: before the first content. ``after_user``: up to an answer. ``after_answer``: up to the next question.
    ``after_system``: up to a question, where ``start`` leads to a system prompt; None where it does not."""

    start: str
    after_system: str | None
    after_user: str
    after_answer: str


class ChatTemplateParser:
    """Reads texts of one chat template. Thread-safe."""

    def __init__(self, chat: ChatRenderer) -> None:
        self._chat = chat

    def prompt(self, text: str) -> list[Message] | None:
        """The turns of a rendered prompt that ends where the assistant's turn begins; None for any other text."""
        body, is_opened = _without_end(text, self._opening)
        for borders in self._borders if is_opened else ():
            found = self._turns(body, borders)
            if found is not None and found[-1]["role"] == "user" and self._rendered(found) == text:
                return found
        return None

    def whole(self, text: str) -> tuple[list[Message], str, bool, int] | None:
        """``(turns, answer, is_finished, start)`` of a whole conversation that ends with the assistant's answer.

        ``start``: where the answer begins in ``text``. None for any other text.
        """
        openings = {self._opening, self._before_answer, *(borders.after_user for borders in self._borders)} - {""}
        places = [(text.rfind(opening) + len(opening), opening) for opening in openings if opening in text]
        for start, opening in sorted(places, reverse=True):
            body = text[: start - len(opening)]
            for borders in self._borders:
                found = self._turns(body, borders)
                if found is None or found[-1]["role"] != "user":
                    continue
                answer, is_finished = self.answer(text[start:])
                whole = self._rendered([*found, {"role": "assistant", "content": answer}], opens_turn=False)
                if text.startswith(self._rendered(found) or "\0") or (whole or "").startswith(text.rstrip()):
                    return found, answer, is_finished, start
        return None

    def answer(self, text: str) -> tuple[str, bool]:
        """``text`` without what closes the assistant's turn, and whether it was there."""
        for end in self.ends:
            body, is_ended = _without_end(text, end)
            token = end.strip()
            if is_ended:
                at = len(body)
                if self._chat.special.pattern.fullmatch(token):
                    while at >= len(token) and body.startswith(token, at - len(token)):
                        at -= len(token)  # end tokens as padding
                return body[:at], True
        return text, False

    @cached_property
    def ends(self) -> list[str]:
        """What may close an answer: all that the template writes behind one, and less white space, longest first."""
        marks = Marks([])
        turns = [{"role": "user", "content": marks.code(0)}, {"role": "assistant", "content": marks.code(1)}]
        try:
            text = self._chat.render(turns, is_marked=True)
        except RenderError:
            return []
        behind = text.partition(marks.code(1))[2]
        marked = behind.partition(GENERATION_END)[0] if GENERATION_END in behind else ""
        behind = behind.replace(GENERATION_START, "").replace(GENERATION_END, "")
        return sorted(
            {end for end in (behind, behind.rstrip(), marked, marked.rstrip()) if end.strip()}, key=len, reverse=True
        )

    @cached_property
    def begins(self) -> list[str]:
        """Special tokens that the template begins with."""
        found = [self._chat.special.pattern.match(borders.start) for borders in self._borders]
        return list(dict.fromkeys(one[0] for one in found if one))

    @cached_property
    def _opening(self) -> str:
        """What the template writes behind a question to open the assistant's turn."""
        marks = Marks([])
        try:
            text = self._chat.render([{"role": "user", "content": marks.code(0)}], opens_turn=True)
        except RenderError:
            return ""
        return text.partition(marks.code(0))[2]

    @cached_property
    def _before_answer(self) -> str:
        """What the template writes between a question and the last answer."""
        pieces = self._chat.pieces(("user", "assistant"))
        return pieces[1] if pieces is not None else ""

    @cached_property
    def has_space_before_answer(self) -> bool:
        """Whether the template writes a space between what opens the assistant's turn and the answer."""
        opening = self._opening
        return bool(opening) and self._before_answer == opening + " "

    @cached_property
    def _borders(self) -> list[_Borders]:
        found = []
        for roles in (("system", "user", "assistant", "user"), ("user", "assistant", "user"), ("user",)):
            pieces = self._chat.pieces(roles)
            if pieces is None:
                continue
            if len(roles) == 4:
                found.append(_Borders(pieces[0], pieces[1], pieces[2], pieces[3]))
            elif len(roles) == 3:
                found.append(_Borders(pieces[0], None, pieces[1], pieces[2]))
            elif not found:  # a template of one question
                found.append(_Borders(pieces[0], None, self._opening, ""))
        # the longest fits best; of equal ones the one that finds no system prompt in a text of the user's
        return sorted(found, key=lambda borders: (-len(borders.start), borders.after_system is not None))

    def _turns(self, body: str, borders: _Borders) -> list[Message] | None:
        """The turns of a text without its end, by the borders alone."""
        if not body.startswith(borders.start):
            return None
        at = len(borders.start)
        turns: list[Message] = []
        role = "user"
        if borders.after_system is not None:
            end = body.find(borders.after_system, at) if borders.after_system else -1
            if end < 0:
                return None
            turns.append({"role": "system", "content": body[at:end]})
            at = end + len(borders.after_system)
        while len(turns) < _MAX_TURNS:
            border = borders.after_user if role == "user" else borders.after_answer
            end = body.find(border, at) if border else -1
            turns.append({"role": role, "content": body[at:] if end < 0 else body[at:end]})
            if end < 0:
                return turns
            at = end + len(border)
            role = "assistant" if role == "user" else "user"
        return None

    def _rendered(self, messages: Sequence[Message], *, opens_turn: bool = True) -> str | None:
        try:
            return self._chat.render(messages, opens_turn=opens_turn)
        except RenderError:
            return None


def _without_end(text: str, end: str) -> tuple[str, bool]:
    return (text[: len(text) - len(end)], True) if end and text.endswith(end) else (text, False)
