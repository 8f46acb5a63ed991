"""Items as a Hugging Face reward model reads them: the conversation in its own chat template, nothing added.

The ids are those of ``tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}])``, with the
text that closes the assistant's turn, and the model is read where transformers reads it: at the last of them that is
not the pad token. Without a chat template they are those of ``tokenizer(prompt, response)``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from redline.chat_template import RenderError
from redline_model.encoding.encoder import EncodedItem, Encoder, Item
from redline_model.errors import EmptyResponseError, TooLongError
from redline_model.options import Template


class ConversationEncoder(Encoder):
    """Encodes for a model that has no instruction and no rewrite, in arrangement ``conversation``.

    An item's rewards are about the tokens of its response and one more, which stands for the end of the turn;
    the model may read it as other ids, for a template's text and the response's may share a token.

    A whole conversation is rendered and tokenised as one text. Where ids are given in place of text, or where a prompt
    was cut, the template's pieces and the texts are tokenised apart.
    """

    def __init__(self, tokenizer: Any, template: Template, **settings: Any) -> None:
        super().__init__(tokenizer, template, **{**settings, "arrangement": "conversation"})

    def length(self, prefix: int, response: int, request: int, target: int) -> int:
        """See ``Encoder``."""
        return prefix + response + request

    def encode(self, item: Item, *, is_bounded: bool = True) -> EncodedItem:
        """See ``Encoder``; an unfinished response has no closing text behind it."""
        apart = super().encode(item, is_bounded=is_bounded)
        if not apart.is_finished:
            apart = replace(apart, instruction_ids=[])
        if not (apart.prefix_ids or apart.response_ids or apart.instruction_ids):
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
        return replace(apart, prefix_ids=ids[:shared], response_ids=ids[shared:], instruction_ids=[])

    def _whole(self, item: Item, apart: EncodedItem) -> list[int] | None:
        """The ids of the conversation as one text; None where its pieces are to be tokenised apart."""
        chat = self.layout.chat
        if chat is None or apart.is_truncated or not isinstance(item.response, str):
            return None
        messages, ids = self._messages(item.prompt)
        if ids is not None:
            return None
        try:
            found = chat.conversation_ids(messages, item.tools, item.response, is_finished=apart.is_finished)
        except RenderError:  # the template refuses the response itself, not the turns
            return None
        return found or None
