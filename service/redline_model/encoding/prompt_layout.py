"""How a prompt is laid out in front of a response: one layout a template style, each pure and thread-safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from redline.chat_template import (
    ChatRenderer,
    PolicyPrompts,
    RenderError,
    StatelessTokenizer,
    TemplateParts,
    check_bare,
)
from redline.chat_template.turn_markers import turn_markers
from redline.messages import Message
from redline_model.errors import InvalidPromptError, UnsupportedError

if TYPE_CHECKING:
    from redline_model.options import Template

T = TypeVar("T")
Ids = tuple[list[int], list[int]]
_Tools = Sequence[Any] | None


class Layout(Protocol):
    """Conversations to ids. Raises RenderError for one that does not fit."""

    @property
    def chat(self) -> ChatRenderer | None:
        """The chat template, None where the layout has none."""
        ...

    @property
    def reads_apart(self) -> bool:
        """Whether prompt and response are two texts for the tokenizer, each with a beginning."""
        ...

    def whole(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """``(before, behind)`` the response, the contents read with what stands around them as one text."""
        ...

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """Ids before each content, before the response and behind it; contents are left out, to be put in as ids."""
        ...


class ChatLayout:
    """The chat template; the response is the assistant's turn, behind it ``following`` and an opened turn if asked."""

    reads_apart = False

    def __init__(self, chat: ChatRenderer, following: Sequence[Message], *, opens_turn: bool) -> None:
        self.chat: ChatRenderer = chat
        self._following = following
        self._opens_turn = opens_turn

    def whole(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        return self.chat.ids_around(messages, tools, self._following, opens_turn=self._opens_turn)

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        return self.chat.template_parts(messages, tools, self._following, opens_turn=self._opens_turn)


class PolicyLayout:
    """A policy's prompt, and the response directly behind it."""

    reads_apart = False

    def __init__(self, prompts: PolicyPrompts) -> None:
        self.prompts = prompts
        self.chat = prompts.chat

    def whole(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        return self.prompts.ids(messages, tools), []

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        found = self.prompts.template_parts(messages, tools)
        return TemplateParts((*found.ids, ()), found.trims)


class PlainLayout:
    """Markers in ordinary text, for models without a chat template; every piece is read on its own."""

    chat: ChatRenderer | None = None
    reads_apart = False

    def __init__(self, texts: StatelessTokenizer, turn: str, turn_end: str, rewrite: str) -> None:
        self._texts = texts
        self._turn = turn
        self._turn_end = turn_end
        self._rewrite = rewrite
        self._head = texts.around()[0]
        self._markers = turn_markers(self._pieces, None)

    def _pieces(self, roles: Sequence[str]) -> list[str]:
        headers = [self._turn.format(role=role.capitalize()) for role in roles]
        return [headers[0], *(self._turn_end + header for header in headers[1:]), self._turn_end]

    def whole(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        for message in messages:
            for marker in self._markers:
                if marker in message["content"]:
                    raise RenderError(f"the prompt holds {marker!r}, which marks a turn in the model's template")
        template_parts = self.template_parts(messages, tools).ids
        before: list[int] = []
        for literal, message in zip(template_parts, messages, strict=False):
            before += [*literal, *self._texts.user_text_ids(message["content"], "text" if literal else "nothing")]
        return [*before, *template_parts[-2]], list(template_parts[-1])

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        check_bare(messages, tools)
        pieces = self._pieces([*(message["role"] for message in messages), "assistant"])
        ids = [self._texts.template_ids(pieces[0])]
        ids += [self._texts.template_ids(piece, "text") for piece in [*pieces[1:-1], pieces[-1] + self._rewrite]]
        return TemplateParts(
            (tuple(self._head + ids[0]), *map(tuple, ids[1:])), ((False, False),) * (len(messages) + 1)
        )


class PairLayout:
    """What ``tokenizer(prompt, response)`` adds around two texts; a prompt is one text of the user."""

    chat: ChatRenderer | None = None
    reads_apart = True

    def __init__(self, texts: StatelessTokenizer) -> None:
        self._texts = texts
        self._around = texts.around(2)

    def whole(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        before, between, behind = self.template_parts(messages, tools).ids
        return [*before, *self._texts.user_text_ids(messages[0]["content"]), *between], list(behind)

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        check_bare(messages, tools)
        if [message["role"] for message in messages] != ["user"]:
            raise RenderError("the model has no chat template: it reads a prompt as one text of the user")
        return TemplateParts(tuple(map(tuple, self._around)), ((False, False),) * 2)


def make_layout(template: Template, tokenizer: Any, texts: StatelessTokenizer) -> Layout:
    """The layout of a template. Raises UnsupportedError where it needs a chat template and there is none."""
    if template.style == "policy":
        return PolicyLayout(PolicyPrompts(tokenizer, template.chat_kwargs, texts=texts))
    if template.style == "plain":
        return PlainLayout(texts, template.turn, template.turn_end, template.rewrite)
    if not getattr(tokenizer, "chat_template", None):
        if template.style == "conversation":
            return PairLayout(texts)
        raise UnsupportedError("the bundle's template is of style chat, and its tokenizer has no chat template")
    chat = ChatRenderer(tokenizer, template.chat_kwargs, texts=texts)
    if template.style == "conversation":
        return ChatLayout(chat, (), opens_turn=False)
    return ChatLayout(chat, ({"role": "user", "content": template.instruction},), opens_turn=True)


def key_of(messages: Sequence[Message], tools: _Tools) -> str:
    """Messages and tools as JSON. Raises InvalidPromptError."""
    try:
        return json.dumps([list(messages), list(tools) if tools else None])
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPromptError(f"the prompt holds something that is not JSON: {error}") from error


def laid_out(lay_out: Callable[[Sequence[Message], _Tools], T], key: str) -> T:
    """``lay_out`` of what ``key_of`` was given. Raises InvalidPromptError."""
    messages, tools = json.loads(key)
    try:
        return lay_out(messages, tools)
    except RenderError as error:
        raise InvalidPromptError(str(error)) from error
