"""Renders prompts and responses as text, for engines that take one text per sample."""

from __future__ import annotations

from typing import Any, NamedTuple

from redline.chat_template.policy_prompts import MESSAGE_SEPARATOR, POLICY_SETTINGS, plain_text
from redline.chat_template.renderer import ChatRenderer
from redline.messages import Prompt


class RenderedItem(NamedTuple):
    """The text before the response, the response, and what closes the assistant's turn."""

    before: str
    response: str
    after: str

    @property
    def text(self) -> str:
        """The whole text."""
        return self.before + self.response + self.after


class PromptTexts:
    """Renders with the chat template of a tokenizer, or plainly: prompt, a blank line, response.

    Args:
        tokenizer: a transformers tokenizer with a chat template, or None.
    """

    def __init__(self, tokenizer: Any = None) -> None:
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self._chat = ChatRenderer(tokenizer, POLICY_SETTINGS) if has_template else None
        self._end = str(getattr(tokenizer, "eos_token", None) or "")

    @property
    def has_template(self) -> bool:
        """Whether a chat template is used; its text contains the special tokens."""
        return self._chat is not None

    def render(self, prompt: Prompt, response: str) -> RenderedItem:
        """The text of one response. Raises RenderError: the chat template refuses the conversation."""
        if self._chat is None:
            return RenderedItem(plain_text(prompt) + MESSAGE_SEPARATOR, response, self._end)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        before = self._chat.render(messages, opens_turn=True)
        whole = self._chat.render([*messages, {"role": "assistant", "content": response}])
        # a template may change earlier text once an answer follows; then the turn is closed by the end token
        after = whole[len(before + response) :] if whole.startswith(before + response) else self._end
        return RenderedItem(before, response, after)
