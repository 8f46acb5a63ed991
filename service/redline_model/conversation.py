"""Items as a Hugging Face reward model reads them: the conversation in its own chat template, nothing added.

The ids are those of ``tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}])``, with the
text that closes the assistant's turn, and the model is read at the last of them. Without a chat template they are
those of ``tokenizer(prompt, response)``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile
from typing import Any

from jinja2 import TemplateError

from redline_model.errors import EmptyResponseError, InvalidPromptError, TooLongError
from redline_model.template import EncodedItem, Encoder, Item, Template
from redline_model.tokenizing import tokenized

_MARK = "\ue000{}\ue001"


class ConversationEncoder(Encoder):
    """Encodes for a model that has no instruction and no rewrite, in arrangement ``conversation``.

    An item's rewards are about the tokens of its response and one more, which stands for the end of the turn;
    the model may read it as other ids, for a template's text and the response's may share a token.

    A whole conversation is rendered and tokenised as one text. Where that would let a caller's text pass for a
    special token, where ids are given in place of text, or where a prompt was cut, the template's pieces and the texts
    are tokenised apart.
    """

    def __init__(self, tokenizer: Any, template: Template, **settings: Any) -> None:
        super().__init__(tokenizer, template, **{**settings, "arrangement": "conversation"})
        self._has_template = bool(getattr(tokenizer, "chat_template", None))
        special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        texts = sorted({*special, *map(str, tokenizer.all_special_tokens)} - {""}, key=len, reverse=True)
        self._special_text = re.compile("|".join(map(re.escape, texts)) or r"(?!)")

    def length(self, prefix: int, response: int, request: int, target: int) -> int:
        """See ``Encoder``."""
        return prefix + response + request

    def encode(self, item: Item, *, is_bounded: bool = True) -> EncodedItem:
        """See ``Encoder``; an unfinished response has no closing text behind it."""
        apart = super().encode(item, is_bounded=is_bounded)
        if not apart.is_finished:
            apart = replace(apart, request_ids=[])
        if not (apart.prefix_ids or apart.response_ids or apart.request_ids):
            raise EmptyResponseError("prompt and response are empty: there is no token to judge")
        ids = self._whole(item, apart)
        if ids is None:
            return apart
        if is_bounded and self.max_tokens is not None and len(ids) > self.max_tokens:
            if item.on_too_long == "truncate":
                return apart
            raise TooLongError(f"the item needs {len(ids)} tokens and the model reads {self.max_tokens}")
        pairs = zip(ids[:-1], apart.prefix_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return replace(apart, prefix_ids=ids[:shared], response_ids=ids[shared:], request_ids=[])

    def _whole(self, item: Item, apart: EncodedItem) -> list[int] | None:
        """The ids of the conversation as one text; None where its pieces are to be tokenised apart."""
        if not self._has_template or apart.is_truncated or not isinstance(item.response, str) or not item.prompt:
            return None
        prompt: Any = [{"role": "user", "content": item.prompt}] if isinstance(item.prompt, str) else item.prompt
        if not isinstance(prompt[0], dict):
            return None
        texts = [str(message.get("content") or "") for message in prompt] + [item.response]
        if any(self._special_text.search(text) for text in texts):
            return None
        text = self._rendered([*prompt, {"role": "assistant", "content": item.response}])
        if not apart.is_finished:
            mark = _MARK.format(len(prompt))
            closing = self._rendered([*prompt, {"role": "assistant", "content": mark}]).partition(mark)[2]
            if not text.endswith(closing):
                return None
            text = text[: len(text) - len(closing)]
        return list(self._special(text)) or None

    def _rendered(self, messages: Sequence[dict[str, Any]]) -> str:
        try:
            return str(self.tokenizer.apply_chat_template(messages, tokenize=False, **self.template.chat_kwargs))
        except (TemplateError, ValueError, KeyError) as error:
            raise InvalidPromptError(f"the chat template refuses the conversation: {error}") from error

    def _lay_out(self, roles: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The ids before each message, before the response, and after it."""
        if not self._has_template:
            if roles != ("user",):
                raise InvalidPromptError("the model has no chat template: it reads a prompt as one text of the user")
            return self._around_pair()
        marks = [_MARK.format(number) for number in range(len(roles) + 1)]
        rest = self._rendered(
            [{"role": role, "content": mark} for role, mark in zip((*roles, "assistant"), marks, strict=True)]
        )
        literals: list[tuple[int, ...]] = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                raise InvalidPromptError("the chat template leaves out a turn of the conversation")
            literals.append(self._special(before))
        return (*literals, self._special(rest))

    def _around_pair(self) -> tuple[tuple[int, ...], ...]:
        """What the tokenizer puts before, between and behind two texts."""
        pair = tokenized(self.tokenizer, "a", "a")
        around: list[list[int]] = [[], [], []]
        at = 0
        for token, sequence in zip(pair["input_ids"], pair.sequence_ids(0), strict=True):
            if sequence is None:
                around[at].append(token)
            else:
                at = sequence + 1
        return tuple(map(tuple, around))
