"""Encode items for a Hugging Face reward model: the conversation in its own chat template, with nothing added.

The ids are those of ``tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": response}])``, including
the text that closes the assistant's turn. As in transformers, the score is read at the last of them that is not the pad
token. Without a chat template the ids are those of ``tokenizer(prompt, response)``.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import takewhile
from typing import Any

from redline.chat_template import RenderError
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem, Item
from redline_model.errors import EmptyResponseError, TooLongError
from redline_model.options import Template


class ConversationEncoder(Encoder):
    """Encodes for a model without instruction and rewrite, in arrangement ``conversation``.

    An item has rewards for the tokens of its response and one more for the end of the turn. The model may read other
    ids than these, because a token can span the response and the template's text.

    A whole conversation is rendered and tokenised as one text. If the item has ids instead of text, or if its prompt
    was cut, the template's parts and the texts are tokenised separately.
    """

    def __init__(self, tokenizer: Any, template: Template, **settings: Any) -> None:
        super().__init__(tokenizer, template, **{**settings, "arrangement": "conversation"})

    def length(self, prefix: int, response: int, instruction: int, target: int) -> int:
        """See ``Encoder``."""
        return prefix + response + instruction

    def encode(self, item: Item, *, is_bounded: bool = True) -> EncodedItem:
        """See ``Encoder``; an unfinished response is not followed by closing text."""
        separate = super().encode(item, is_bounded=is_bounded)
        if not separate.is_finished:
            separate = replace(separate, instruction_ids=[])
        if not (separate.prefix_ids or separate.response_ids or separate.instruction_ids):
            raise EmptyResponseError("prompt and response are empty: there is no token to score")
        ids = self._conversation_ids(item, separate)
        if ids is None:
            return separate
        if is_bounded and self.max_tokens is not None and len(ids) > self.max_tokens:
            if item.on_too_long == "truncate":
                return separate
            raise TooLongError(f"the item needs {len(ids)} tokens and the model reads {self.max_tokens}")
        pairs = zip(ids[:-1], separate.prefix_ids, strict=False)
        shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        return replace(separate, prefix_ids=ids[:shared], response_ids=ids[shared:], instruction_ids=[])

    def _conversation_ids(self, item: Item, separate: EncodedItem) -> list[int] | None:
        """The ids of the conversation as one text; None if its parts have to be tokenised separately."""
        chat = self.layout.chat
        if chat is None or separate.is_truncated or not isinstance(item.response, str):
            return None
        messages, ids = self._messages(item.prompt)
        if ids is not None:
            return None
        try:
            rendered = chat.conversation_ids(messages, item.tools, item.response, is_finished=separate.is_finished)
        except RenderError:  # the template refuses the response itself, not the turns
            return None
        return rendered or None
