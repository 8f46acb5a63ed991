"""What a policy is given to continue: one function for training it, for its DPO reward and for sampling."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from redline.chat_template.errors import RenderError
from redline.chat_template.renderer import ChatRenderer, TemplateParts
from redline.chat_template.stateless_tokenizer import StatelessTokenizer
from redline.messages import Message, content_fields

# a policy's chat template as it stands; the date alone is fixed, so that its prompts are the same tomorrow
POLICY_SETTINGS: dict[str, Any] = {"date_string": "01 Jan 2025"}
# between the messages of a conversation where the tokenizer has no chat template
BETWEEN_MESSAGES = "\n\n"


class PolicyPrompts:
    """Prompts to ids. With a chat template: ``apply_chat_template(prompt, add_generation_prompt=True)``.

    Without one: the text, or the messages' contents with a blank line between them, behind what the tokenizer puts in
    front of any text (a begin token).

    Thread-safe.
    """

    def __init__(
        self, tokenizer: Any, settings: Mapping[str, Any] = POLICY_SETTINGS, *, texts: StatelessTokenizer | None = None
    ) -> None:
        self.texts = texts or StatelessTokenizer(tokenizer)
        has_template = bool(getattr(tokenizer, "chat_template", None))
        self.chat = ChatRenderer(tokenizer, settings, texts=self.texts) if has_template else None
        self._head = self.texts.around()[0]

    def ids(self, prompt: str | Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids that the policy continues.

        Raises:
            RenderError: the chat template refuses the conversation or leaves part of it out; see
                ``ChatRenderer.check``. Without a template: a message holds more than text.
        """
        if self.chat is not None:
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            return self.chat.policy_ids(messages, tools)
        return [*self._head, *self.texts.user_text_ids(bare_text(prompt, tools))]

    def template_parts(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> TemplateParts:
        """What stands around the messages' contents, see ``ChatRenderer.template_parts``; raises as ``ids``."""
        if self.chat is not None:
            return self.chat.template_parts(messages, tools, (), opens_turn=True, has_answer=False)
        check_bare(messages, tools)
        between = tuple(self.texts.user_text_ids(BETWEEN_MESSAGES, "text"))
        ids = (tuple(self._head), *((between,) * (len(messages) - 1)), ())
        return TemplateParts(ids, ((False, False),) * len(messages))


def check_bare(messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
    """Raise RenderError for what has no place where there is no chat template."""
    if tools:
        raise RenderError("the model has no chat template, which 'tools' need")
    for message in messages:
        for name in content_fields(message):
            raise RenderError(f"the model has no chat template, which the field {name!r} of a message needs")


def bare_text(prompt: str | Sequence[Message], tools: Sequence[Any] | None = None) -> str:
    """A prompt without any template. Raises RenderError for fields and tools."""
    check_bare([] if isinstance(prompt, str) else prompt, tools)
    return prompt if isinstance(prompt, str) else BETWEEN_MESSAGES.join(message["content"] for message in prompt)
