"""The prompt ids of a policy: the same for training it, for its DPO reward and for sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redline.chat_template.errors import RenderError
from redline.chat_template.renderer import ChatRenderer, TemplateParts
from redline.chat_template.stateless_tokenizer import StatelessTokenizer
from redline.messages import Message, content_fields

# a policy's chat template without any settings except the date, which is fixed so that prompts do not change
POLICY_SETTINGS: dict[str, Any] = {"date_string": "01 Jan 2025"}
# between the messages of a conversation if the tokenizer has no chat template
MESSAGE_SEPARATOR = "\n\n"


class PolicyPrompts:
    """Prompts to ids. With a chat template: ``apply_chat_template(prompt, add_generation_prompt=True)``.

    Without one: the text, or the messages' contents with a blank line between them, after the special tokens that the
    tokenizer adds at the beginning of any text.

    Thread-safe.
    """

    def __init__(
        self,
        tokenizer: Any,
        settings: Mapping[str, Any] = POLICY_SETTINGS,
        *,
        text_tokenizer: StatelessTokenizer | None = None,
    ) -> None:
        self.text_tokenizer = text_tokenizer or StatelessTokenizer(tokenizer)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.chat = ChatRenderer(tokenizer, settings, text_tokenizer=self.text_tokenizer) if has_template else None
        self._start_ids = self.text_tokenizer.special_ids_around()[0]

    def ids(self, prompt: str | Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids that the policy continues.

        Raises:
            RenderError: the chat template refuses the conversation or omits part of it; see
                ``ChatRenderer.check``. Without a template: a message has more than text.
        """
        if self.chat is not None:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return self.chat.policy_ids(messages, tools)
        return [*self._start_ids, *self.text_tokenizer.user_text_ids(plain_text(prompt, tools))]

    def template_parts(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> TemplateParts:
        """The ids around the messages' contents, see ``ChatRenderer.template_parts``; raises as ``ids`` does."""
        if self.chat is not None:
            return self.chat.template_parts(messages, tools, (), opens_turn=True, has_answer=False)
        check_plain(messages, tools)
        separator = tuple(self.text_tokenizer.user_text_ids(MESSAGE_SEPARATOR, "text"))
        ids = (tuple(self._start_ids), *((separator,) * (len(messages) - 1)), ())
        return TemplateParts(ids, ((False, False),) * len(messages))


def check_plain(messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
    """Raise RenderError for tools and for fields of messages that only a chat template can render."""
    if tools:
        raise RenderError("the model has no chat template, which 'tools' need")
    for message in messages:
        for name in content_fields(message):
            raise RenderError(f"the model has no chat template, which the field {name!r} of a message needs")


def plain_text(prompt: str | Sequence[Message], tools: Sequence[Any] | None = None) -> str:
    """The text of a prompt without a template. Raises RenderError for fields and tools."""
    check_plain([] if isinstance(prompt, str) else prompt, tools)
    return prompt if isinstance(prompt, str) else MESSAGE_SEPARATOR.join(message["content"] for message in prompt)
