"""How a prompt is laid out before a response: one layout per template style, each pure and thread-safe."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from redline.chat_template import (
    ChatRenderer,
    PolicyPrompts,
    RenderError,
    StatelessTokenizer,
    TemplateParts,
    check_plain,
)
from redline.chat_template.turn_markers import turn_markers
from redline.messages import Message
from redline_model.errors import InvalidPromptError, UnsupportedError
from redline_model.options import Template

T = TypeVar("T")
Ids = tuple[list[int], list[int]]
_Tools = Sequence[Any] | None


class Layout(Protocol):
    """Conversations to ids. Raises RenderError for one that does not fit."""

    @property
    def chat(self) -> ChatRenderer | None:
        """The chat template; None if the layout has none."""
        ...

    @property
    def has_two_texts(self) -> bool:
        """Whether the tokenizer reads prompt and response as two texts, each with its own beginning."""
        ...

    def ids(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """Ids before and after the response; the contents are tokenised together with the template around them."""
        ...

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """Ids before each content, before the response and after it; contents are inserted later as ids."""
        ...


class ChatLayout:
    """The chat template: the response is the assistant's turn, then come ``following`` and, if set, an opened turn."""

    has_two_texts = False

    def __init__(self, chat: ChatRenderer, following: Sequence[Message], *, opens_turn: bool) -> None:
        self.chat: ChatRenderer = chat
        self._following = following
        self._opens_turn = opens_turn

    def ids(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        return self.chat.ids_around(messages, tools, self._following, opens_turn=self._opens_turn)

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        return self.chat.template_parts(messages, tools, self._following, opens_turn=self._opens_turn)


class PolicyLayout:
    """A policy's prompt, directly followed by the response."""

    has_two_texts = False

    def __init__(self, prompts: PolicyPrompts) -> None:
        self.prompts = prompts
        self.chat = prompts.chat

    def ids(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        return self.prompts.ids(messages, tools), []

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        parts = self.prompts.template_parts(messages, tools)
        return TemplateParts((*parts.ids, ()), parts.trims)


class PlainLayout:
    """Markers in ordinary text, for models without a chat template; every part is tokenised on its own."""

    chat: ChatRenderer | None = None
    has_two_texts = False

    def __init__(self, text_tokenizer: StatelessTokenizer, turn: str, turn_end: str, rewrite: str) -> None:
        self._text_tokenizer = text_tokenizer
        self._turn = turn
        self._turn_end = turn_end
        self._rewrite = rewrite
        self._start_ids = text_tokenizer.special_ids_around()[0]
        self._markers = turn_markers(self._texts_around, None)

    def _texts_around(self, roles: Sequence[str]) -> list[str]:
        headers = [self._turn.format(role=role.capitalize()) for role in roles]
        return [headers[0], *(self._turn_end + header for header in headers[1:]), self._turn_end]

    def ids(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        for message in messages:
            for marker in self._markers:
                if marker in message["content"]:
                    raise RenderError(f"the prompt holds {marker!r}, which marks a turn in the model's template")
        parts = self.template_parts(messages, tools).ids
        before: list[int] = []
        for part, message in zip(parts, messages, strict=False):
            before += [*part, *self._text_tokenizer.user_text_ids(message["content"], "text" if part else "nothing")]
        return [*before, *parts[-2]], list(parts[-1])

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        check_plain(messages, tools)
        texts = self._texts_around([*(message["role"] for message in messages), "assistant"])
        ids = [self._text_tokenizer.template_ids(texts[0])]
        ids += [self._text_tokenizer.template_ids(text, "text") for text in [*texts[1:-1], texts[-1] + self._rewrite]]
        return TemplateParts(
            (tuple(self._start_ids + ids[0]), *map(tuple, ids[1:])), ((False, False),) * (len(messages) + 1)
        )


class PairLayout:
    """Two texts with the special tokens that ``tokenizer(prompt, response)`` adds; a prompt is one user message."""

    chat: ChatRenderer | None = None
    has_two_texts = True

    def __init__(self, text_tokenizer: StatelessTokenizer) -> None:
        self._text_tokenizer = text_tokenizer
        self._special_ids = text_tokenizer.special_ids_around(2)

    def ids(self, messages: Sequence[Message], tools: _Tools) -> Ids:
        """See ``Layout``."""
        before, between, after = self.template_parts(messages, tools).ids
        return [*before, *self._text_tokenizer.user_text_ids(messages[0]["content"]), *between], list(after)

    def template_parts(self, messages: Sequence[Message], tools: _Tools) -> TemplateParts:
        """See ``Layout``."""
        check_plain(messages, tools)
        if [message["role"] for message in messages] != ["user"]:
            raise RenderError("the model has no chat template: it reads a prompt as one text of the user")
        return TemplateParts(tuple(map(tuple, self._special_ids)), ((False, False),) * 2)


def make_layout(template: Template, tokenizer: Any, text_tokenizer: StatelessTokenizer) -> Layout:
    """The layout of a template. Raises UnsupportedError if it needs a chat template and there is none."""
    if template.style == "policy":
        return PolicyLayout(PolicyPrompts(tokenizer, template.chat_kwargs, text_tokenizer=text_tokenizer))
    if template.style == "plain":
        return PlainLayout(text_tokenizer, template.turn, template.turn_end, template.rewrite)
    if not getattr(tokenizer, "chat_template", None):
        if template.style == "conversation":
            return PairLayout(text_tokenizer)
        raise UnsupportedError("the bundle's template is of style chat, and its tokenizer has no chat template")
    chat = ChatRenderer(tokenizer, template.chat_kwargs, text_tokenizer=text_tokenizer)
    if template.style == "conversation":
        return ChatLayout(chat, (), opens_turn=False)
    return ChatLayout(chat, ({"role": "user", "content": template.instruction},), opens_turn=True)


def prompt_key(messages: Sequence[Message], tools: _Tools) -> str:
    """Messages and tools as JSON. Raises InvalidPromptError."""
    try:
        return json.dumps([list(messages), list(tools) if tools else None])
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidPromptError(f"the prompt holds something that is not JSON: {error}") from error


def apply_layout(layout_method: Callable[[Sequence[Message], _Tools], T], key: str) -> T:
    """``layout_method`` applied to the messages and tools of a ``prompt_key``. Raises InvalidPromptError."""
    messages, tools = json.loads(key)
    try:
        return layout_method(messages, tools)
    except RenderError as error:
        raise InvalidPromptError(str(error)) from error
