"""Conversations to ids with a model's chat template; callers' text cannot be taken for the template's turn markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from redline.chat_template.compile import compile_template, template_date
from redline.chat_template.errors import RenderError
from redline.chat_template.special_tokens import Placeholders, SpecialTokens, all_strings, map_strings
from redline.chat_template.stateless_tokenizer import StatelessTokenizer
from redline.chat_template.text_start import Preceding
from redline.chat_template.turn_markers import turn_markers
from redline.messages import CONTENT_FIELDS, Message

_ROLE = re.compile(r"[\w .:/@-]{1,256}")
# names of the field for reasoning before an answer
_REASONING = ("reasoning_content", "thinking", "reasoning")
# (role, field) pairs of one conversation that are checked; each needs one more rendering
_MAX_FIELDS = 16
_MAX_ROLE_SEQUENCES = 256  # cached results: which messages the template omits, by sequence of roles


class TemplateParts(NamedTuple):
    """What a template writes around the contents of messages, which are inserted later as ids.

    ``ids``: before each content, and after the last. ``trims``: for each content, whether the template removes white
    space at its beginning, and at its end.
    """

    ids: tuple[tuple[int, ...], ...]
    trims: tuple[tuple[bool, bool], ...]


class ChatRenderer:
    """Thread-safe.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        settings: variables of the template; they also decide its date, see ``redline.chat_template.compile``.
        text_tokenizer: of ``tokenizer``, if there is one already.
    """

    def __init__(
        self, tokenizer: Any, settings: Mapping[str, Any], *, text_tokenizer: StatelessTokenizer | None = None
    ) -> None:
        self.text_tokenizer = text_tokenizer or StatelessTokenizer(tokenizer)
        self.special = SpecialTokens(self.text_tokenizer)
        self._templates = tokenizer.chat_template
        self._date = template_date(settings)
        named = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, (str, list))}
        self._variables = {**named, **settings}
        self._omitted_by_roles = lru_cache(maxsize=_MAX_ROLE_SEQUENCES)(
            lambda roles: self._omitted([{"role": role, "content": "x"} for role in roles], None)
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        opens_turn: bool = False,
        marks_generation: bool = False,
    ) -> str:
        """As ``tokenizer.apply_chat_template(..., tokenize=False)``, with a fixed date.

        Args:
            opens_turn: whether the text ends where the assistant's next turn begins (``add_generation_prompt``).
            marks_generation: see ``redline.chat_template.compile.compile_template``.

        Raises:
            RenderError: the template refuses the conversation.
        """
        if not messages:
            raise RenderError("the conversation is empty")
        try:
            template = compile_template(self._source(tools), self._date, marks_generation=marks_generation)
            return str(
                template.render(
                    messages=[self._template_message(message) for message in messages],
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=opens_turn,
                    **self._variables,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RenderError(f"the chat template refuses the conversation {_roles_of(messages)}: {reason}") from error

    def _template_message(self, message: Mapping[str, Any]) -> dict[str, Any]:
        fields = _with_reasoning(message)
        if self._needs_content_parts and isinstance(fields.get("content"), str):
            fields["content"] = [{"type": "text", "text": fields["content"]}]
        return fields

    @cached_property
    def _needs_content_parts(self) -> bool:
        """Whether the template reads content only as a list of parts, and omits content that is text."""
        code = Placeholders([]).code(0)

        def is_written(content: Any) -> bool:
            try:
                template = compile_template(self._source(None), self._date)
                return code in template.render(messages=[{"role": "user", "content": content}], **self._variables)
            except Exception:  # a template is a program and may raise anything
                return False

        return not is_written(code) and is_written([{"type": "text", "text": code}])

    def _source(self, tools: Sequence[Any] | None) -> str:
        if not isinstance(self._templates, dict):
            return str(self._templates)
        if tools and "tool_use" in self._templates:
            return str(self._templates["tool_use"])
        if "default" not in self._templates:
            raise ValueError("the tokenizer has several chat templates and no default one")
        return str(self._templates["default"])

    def texts_around(self, roles: Sequence[str], *, opens_turn: bool = False) -> list[str] | None:
        """What the template writes before, between and after the contents of turns with these roles.

        None if it refuses them, omits a content or writes one twice.
        """
        placeholders = Placeholders([])
        turns = [{"role": role, "content": placeholders.code(n)} for n, role in enumerate(roles)]
        try:
            text = self.render(turns, opens_turn=opens_turn)
        except RenderError:
            return None
        parts = placeholders.pattern.split(text)
        return parts[::2] if parts[1::2] == [str(n) for n in range(len(roles))] else None

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """See ``redline.chat_template.turn_markers``."""
        opened = self.texts_around(("user",), opens_turn=True)
        return turn_markers(self.texts_around, self.special.pattern, opening=opened[-1] if opened is not None else "")

    @cached_property
    def _marker_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.markers, key=len, reverse=True))) or r"(?!)")

    def check(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raise RenderError for a conversation that the model would read as a different one.

        That is: a text with one of the template's turn markers in ordinary characters, a role that is not a name, or a
        text, content field or tools that the template omits.
        """
        for message in messages:
            if not _ROLE.fullmatch(message["role"]) or self.special.occur_in(message["role"]):
                raise RenderError(f"{message['role'][:20]!r} is not a valid role")
            for text in all_strings({name: value for name, value in message.items() if name != "role"}):
                self._check_text(text)
        for text in all_strings(list(tools or ())):
            self._check_text(text)
        self._check_fields(messages, tools)
        self._check_contents(messages, tools)

    def _check_text(self, text: str) -> None:
        marker = self._marker_pattern.search(text)
        if marker:
            raise RenderError(f"the prompt holds {marker[0][:40]!r}, which marks a turn in the model's chat template")

    def _check_contents(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raise RenderError if the template omits the content of a message."""
        if any(set(message) - {"role", "content", "name"} for message in messages) or tools:
            omitted = self._omitted(messages, tools)
        else:
            omitted = self._omitted_by_roles(tuple(message["role"] for message in messages))
        for n in omitted:
            if messages[n]["content"].strip():
                raise RenderError(f"the chat template leaves out a turn of role {messages[n]['role']!r}")

    def _omitted(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> list[int]:
        placeholders = Placeholders(all_strings([list(messages), list(tools or ())]))
        marked = [{**m, "content": placeholders.code(n)} if m["content"] else m for n, m in enumerate(messages)]
        written = set(placeholders.pattern.findall(self.render(marked, tools, opens_turn=True)))
        return [n for n, message in enumerate(messages) if message["content"] and str(n) not in written]

    def _check_fields(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        groups = {
            (message["role"], "reasoning_content" if name in _REASONING else name): None
            for message in messages
            for name in CONTENT_FIELDS
            if name in message
        }
        if not groups and not tools:
            return
        if len(groups) > _MAX_FIELDS:
            raise RenderError(f"the conversation has more than {_MAX_FIELDS} kinds of fields besides its texts")
        rendered = self.render(messages, tools, opens_turn=True)
        for role, name in groups:
            names = _REASONING if name == "reasoning_content" else (name,)
            without = [_without(message, names) if message["role"] == role else message for message in messages]
            if self._renders_to(rendered, without, tools):
                field = next(n for n in names for m in messages if m["role"] == role and n in m)
                raise RenderError(f"the model's chat template does not use {field!r} of a message of role {role!r}")
        if tools and self._renders_to(rendered, messages, None):
            raise RenderError("the model's chat template does not use 'tools'")

    def _renders_to(self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> bool:
        try:
            return self.render(messages, tools, opens_turn=True) == text
        except RenderError:  # the template refuses the conversation without it
            return False

    def _masked(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[list[Message], list[Any] | None, Placeholders]:
        texts = all_strings([list(messages), list(tools or ())])
        placeholders = Placeholders(texts)
        if not any(self.special.occur_in(text) for text in texts):
            return list(messages), list(tools) if tools else None, placeholders
        masked = map_strings([list(messages), list(tools or ())], lambda text: self.special.mask(text, placeholders))
        return masked[0], masked[1] or None, placeholders

    def policy_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids that a policy continues: ``apply_chat_template(messages, add_generation_prompt=True)``.

        Raises:
            RenderError: see ``check`` and ``render``.
        """
        self.check(messages, tools)
        masked, tools, placeholders = self._masked(messages, tools)
        return self.special.ids(self.render(masked, tools, opens_turn=True), placeholders, self.text_tokenizer)

    def ids_around(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        following: Sequence[Message],
        *,
        opens_turn: bool,
    ) -> tuple[list[int], list[int]]:
        """Ids before and after the assistant's answer to ``messages``.

        ``following``: turns after the answer. ``opens_turn``: see ``render``.

        Raises:
            RenderError: see ``check`` and ``render``, or the template omits the answer.
        """
        self.check(messages, tools)
        masked, tools, placeholders = self._masked(messages, tools)
        answer = {"role": "assistant", "content": placeholders.code(len(placeholders.originals))}
        text = self.render([*masked, answer, *following], tools, opens_turn=opens_turn)
        before, found, after = text.partition(answer["content"])
        if not found:
            raise RenderError(f"the chat template leaves out the answer to the conversation {_roles_of(messages)}")
        ids = self.special.ids(before, placeholders, self.text_tokenizer)
        return ids, self.special.ids(after, placeholders, self.text_tokenizer, preceding="text")

    def conversation_ids(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, answer: str, *, is_finished: bool
    ) -> list[int] | None:
        """Ids of ``messages`` and the assistant's ``answer`` as one text; the closing text is left out if not finished.

        None if the template changes the end of the answer, so that its closing text cannot be found.

        Raises:
            RenderError: see ``render``.
        """
        masked, tools, placeholders = self._masked([*messages, {"role": "assistant", "content": answer}], tools)
        text = self.render(masked, tools)
        if not is_finished:
            code = placeholders.code(len(placeholders.originals))
            closing = self.render([*masked[:-1], {"role": "assistant", "content": code}], tools).partition(code)[2]
            if not text.endswith(closing):
                return None
            text = text[: len(text) - len(closing)]
        return self.special.ids(text, placeholders, self.text_tokenizer)

    def template_parts(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        following: Sequence[Message],
        *,
        opens_turn: bool,
        has_answer: bool = True,
    ) -> TemplateParts:
        """What the template writes around the contents of ``messages`` and of the answer, which are not rendered.

        Args:
            has_answer: whether the assistant's answer follows ``messages``.

        Raises:
            RenderError: the template refuses the roles or omits a content.
        """
        self.check([{**message, "content": ""} for message in messages], tools)
        masked, tools, placeholders = self._masked([{**message, "content": ""} for message in messages], tools)
        turns = [*masked, {"role": "assistant"}] if has_answer else masked
        first = len(placeholders.originals)
        codes = [placeholders.code(first + n) for n in range(len(turns))]

        white_space = "\n "

        def parts_with(padding: str) -> list[str]:
            contents = [f"{padding}{code}{padding}" for code in codes]
            marked = [{**turn, "content": content} for turn, content in zip(turns, contents, strict=True)]
            rest = self.render([*marked, *following], tools, opens_turn=opens_turn)
            parts = []
            for code in codes:
                before, found, rest = rest.partition(code)
                if not found:
                    raise RenderError(f"the chat template leaves out a turn of the conversation {_roles_of(messages)}")
                parts.append(before)
            return [*parts, rest]

        unpadded, padded = parts_with(""), parts_with(white_space)
        trims = tuple(
            (
                not padded[n].endswith(unpadded[n] + white_space),
                not padded[n + 1].startswith(white_space + unpadded[n + 1]),
            )
            for n in range(len(codes))
        )
        preceding: list[Preceding] = ["nothing", *["text" for _ in codes]]  # type: ignore[list-item]
        ids = (
            self.special.ids(part, placeholders, self.text_tokenizer, preceding=kind)
            for part, kind in zip(unpadded, preceding, strict=True)
        )
        return TemplateParts(tuple(map(tuple, ids)), trims)


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """The message without empty fields, and with its reasoning under every name that templates read."""
    fields = {name: value for name, value in message.items() if value is not None}
    reasoning = next((fields[name] for name in _REASONING if name in fields), None)
    return fields if reasoning is None else {"thinking": reasoning, **fields, "reasoning_content": reasoning}


def _without(message: Message, names: Sequence[str]) -> Message:
    return {name: value for name, value in message.items() if name not in names}


def _roles_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Roles for an error message: the first eight, shortened."""
    roles = [str(message.get("role"))[:20] for message in messages[:8]]
    return f"of roles {roles}" + (f" and {len(messages) - 8} more" if len(messages) > 8 else "")
