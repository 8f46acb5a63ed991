"""A chat template and its tokenizer: conversations to ids, with what callers wrote kept apart from what marks turns."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, NamedTuple

from redline.chat_template.compile import compiled, fixed_date
from redline.chat_template.errors import RenderError
from redline.chat_template.special_tokens import Marks, SpecialTokens, mapped_strings, strings_of
from redline.chat_template.stateless_tokenizer import StatelessTokenizer
from redline.chat_template.text_start import Preceding
from redline.chat_template.turn_markers import turn_markers
from redline.messages import CONTENT_FIELDS, Message

_ROLE = re.compile(r"[\w .:/@-]{1,256}")
# names under which transformers passes on what was thought before an answer
_REASONING = ("reasoning_content", "thinking", "reasoning")
# (role, field) pairs of one conversation that are looked at, each with a rendering of its own
_MAX_FIELDS = 16
_MAX_SHAPES = 256  # sequences of roles of which is kept what the template leaves out


class TemplateParts(NamedTuple):
    """What a template writes around contents that are put in later.

    ``ids``: before each content, and behind the last. ``trims``: for each, whether the template takes white space off
    its beginning, and off its end.
    """

    ids: tuple[tuple[int, ...], ...]
    trims: tuple[tuple[bool, bool], ...]


class ChatRenderer:
    """Thread-safe.

    Args:
        tokenizer: a transformers tokenizer with a chat template.
        settings: variables of the template; its date is theirs, see ``redline.chat_template.compile``.
        texts: the tokenizer's private copy, if there is one already.
    """

    def __init__(self, tokenizer: Any, settings: Mapping[str, Any], *, texts: StatelessTokenizer | None = None) -> None:
        self.texts = texts or StatelessTokenizer(tokenizer)
        self.special = SpecialTokens(self.texts)
        self._templates = tokenizer.chat_template
        self._date = fixed_date(settings)
        named = {name: text for name, text in tokenizer.special_tokens_map.items() if isinstance(text, (str, list))}
        self._variables = {**named, **settings}
        self._left_out_roles = lru_cache(maxsize=_MAX_SHAPES)(
            lambda roles: self._left_out([{"role": role, "content": "x"} for role in roles], None)
        )

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Any] | None = None,
        *,
        opens_turn: bool = False,
        is_marked: bool = False,
    ) -> str:
        """As ``tokenizer.apply_chat_template(..., tokenize=False)``, with a fixed date.

        Args:
            opens_turn: end where the assistant's next turn begins (``add_generation_prompt``).
            is_marked: see ``environment.compiled``.

        Raises:
            RenderError: the template refuses the conversation.
        """
        if not messages:
            raise RenderError("the conversation is empty")
        try:
            template = compiled(self._source(tools), self._date, is_marked=is_marked)
            return str(
                template.render(
                    messages=[self._passed_on(message) for message in messages],
                    tools=list(tools) if tools else None,
                    documents=None,
                    add_generation_prompt=opens_turn,
                    **self._variables,
                )
            )
        except Exception as error:  # a template is a program and may raise anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise RenderError(f"the chat template refuses the conversation {_shown(messages)}: {reason}") from error

    def _passed_on(self, message: Mapping[str, Any]) -> dict[str, Any]:
        given = _with_reasoning(message)
        if self._reads_parts and isinstance(given.get("content"), str):
            given["content"] = [{"type": "text", "text": given["content"]}]
        return given

    @cached_property
    def _reads_parts(self) -> bool:
        """Whether the template reads contents as lists of parts alone, and leaves out texts."""
        code = Marks([]).code(0)

        def is_written(content: Any) -> bool:
            try:
                template = compiled(self._source(None), self._date)
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

    def pieces(self, roles: Sequence[str], *, opens_turn: bool = False) -> list[str] | None:
        """What the template writes before, between and behind the contents of turns of these roles.

        None where it refuses them, leaves a content out or writes one twice.
        """
        marks = Marks([])
        turns = [{"role": role, "content": marks.code(n)} for n, role in enumerate(roles)]
        try:
            text = self.render(turns, opens_turn=opens_turn)
        except RenderError:
            return None
        parts = marks.pattern.split(text)
        return parts[::2] if parts[1::2] == [str(n) for n in range(len(roles))] else None

    @cached_property
    def markers(self) -> tuple[str, ...]:
        """See ``redline.chat_template.turn_markers``."""
        opened = self.pieces(("user",), opens_turn=True)
        return turn_markers(self.pieces, self.special.pattern, opening=opened[-1] if opened is not None else "")

    @cached_property
    def _marker_pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(map(re.escape, sorted(self.markers, key=len, reverse=True))) or r"(?!)")

    def check(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raise RenderError for a caller's conversation that would be read as another one.

        A text that holds one of the template's ordinary turn markers, a role that is no name, or a text, a content
        field or tools that the template leaves out.
        """
        for message in messages:
            if not _ROLE.fullmatch(message["role"]) or self.special.are_in(message["role"]):
                raise RenderError(f"{message['role'][:20]!r} is no name of a role")
            for text in strings_of({name: value for name, value in message.items() if name != "role"}):
                self._check_text(text)
        for text in strings_of(list(tools or ())):
            self._check_text(text)
        self._check_fields(messages, tools)
        self._check_contents(messages, tools)

    def _check_text(self, text: str) -> None:
        found = self._marker_pattern.search(text)
        if found:
            raise RenderError(f"the prompt holds {found[0][:40]!r}, which marks a turn in the model's chat template")

    def _check_contents(self, messages: Sequence[Message], tools: Sequence[Any] | None) -> None:
        """Raise RenderError where the template leaves out what somebody said."""
        if any(set(message) - {"role", "content", "name"} for message in messages) or tools:
            left_out = self._left_out(messages, tools)
        else:
            left_out = self._left_out_roles(tuple(message["role"] for message in messages))
        for n in left_out:
            if messages[n]["content"].strip():
                raise RenderError(f"the chat template leaves out a turn of role {messages[n]['role']!r}")

    def _left_out(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Any] | None) -> list[int]:
        marks = Marks(strings_of([list(messages), list(tools or ())]))
        marked = [{**m, "content": marks.code(n)} if m["content"] else m for n, m in enumerate(messages)]
        found = set(marks.pattern.findall(self.render(marked, tools, opens_turn=True)))
        return [n for n, message in enumerate(messages) if message["content"] and str(n) not in found]

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
            raise RenderError(f"the conversation has more than {_MAX_FIELDS} kinds of fields beside its texts")
        whole = self.render(messages, tools, opens_turn=True)
        for role, name in groups:
            names = _REASONING if name == "reasoning_content" else (name,)
            without = [_without(message, names) if message["role"] == role else message for message in messages]
            if self._is(whole, without, tools):
                given = next(n for n in names for m in messages if m["role"] == role and n in m)
                raise RenderError(f"the model's chat template does not use {given!r} of a message of role {role!r}")
        if tools and self._is(whole, messages, None):
            raise RenderError("the model's chat template does not use 'tools'")

    def _is(self, text: str, messages: Sequence[Message], tools: Sequence[Any] | None) -> bool:
        try:
            return self.render(messages, tools, opens_turn=True) == text
        except RenderError:  # the template cannot do without
            return False

    def _hidden(
        self, messages: Sequence[Message], tools: Sequence[Any] | None
    ) -> tuple[list[Message], list[Any] | None, Marks]:
        texts = strings_of([list(messages), list(tools or ())])
        marks = Marks(texts)
        if not any(self.special.are_in(text) for text in texts):
            return list(messages), list(tools) if tools else None, marks
        hidden = mapped_strings([list(messages), list(tools or ())], lambda text: self.special.hide(text, marks))
        return hidden[0], hidden[1] or None, marks

    def policy_ids(self, messages: Sequence[Message], tools: Sequence[Any] | None = None) -> list[int]:
        """The ids that a policy continues: ``apply_chat_template(messages, add_generation_prompt=True)``.

        Raises:
            RenderError: see ``check`` and ``render``.
        """
        self.check(messages, tools)
        hidden, tools, marks = self._hidden(messages, tools)
        return self.special.ids(self.render(hidden, tools, opens_turn=True), marks, self.texts)

    def ids_around(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        following: Sequence[Message],
        *,
        opens_turn: bool,
    ) -> tuple[list[int], list[int]]:
        """Ids before and behind the assistant's answer to ``messages``.

        Args:
            following: turns behind the answer.
            opens_turn: see ``render``.

        Raises:
            RenderError: see ``check`` and ``render``, or the template leaves the answer out.
        """
        self.check(messages, tools)
        hidden, tools, marks = self._hidden(messages, tools)
        answer = {"role": "assistant", "content": marks.code(len(marks.held))}
        text = self.render([*hidden, answer, *following], tools, opens_turn=opens_turn)
        before, found, behind = text.partition(answer["content"])
        if not found:
            raise RenderError(f"the chat template leaves out the answer to the conversation {_shown(messages)}")
        ids = self.special.ids(before, marks, self.texts)
        return ids, self.special.ids(behind, marks, self.texts, behind="text")

    def conversation_ids(
        self, messages: Sequence[Message], tools: Sequence[Any] | None, answer: str, *, is_finished: bool
    ) -> list[int] | None:
        """Ids of ``messages`` and the assistant's ``answer`` as one text; without the closing text if not finished.

        None where the template changes the end of the answer, so that its closing text cannot be told apart.

        Raises:
            RenderError: see ``render``.
        """
        hidden, tools, marks = self._hidden([*messages, {"role": "assistant", "content": answer}], tools)
        text = self.render(hidden, tools)
        if not is_finished:
            code = marks.code(len(marks.held))
            closing = self.render([*hidden[:-1], {"role": "assistant", "content": code}], tools).partition(code)[2]
            if not text.endswith(closing):
                return None
            text = text[: len(text) - len(closing)]
        return self.special.ids(text, marks, self.texts)

    def template_parts(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None,
        following: Sequence[Message],
        *,
        opens_turn: bool,
        has_answer: bool = True,
    ) -> TemplateParts:
        """What the template writes around the contents of ``messages`` and the answer's, which are left out.

        Args:
            has_answer: whether the assistant's answer stands behind ``messages``.

        Raises:
            RenderError: the template refuses the roles or leaves a content out.
        """
        self.check([{**message, "content": ""} for message in messages], tools)
        hidden, tools, marks = self._hidden([{**message, "content": ""} for message in messages], tools)
        turns = [*hidden, {"role": "assistant"}] if has_answer else hidden
        first = len(marks.held)
        codes = [marks.code(first + n) for n in range(len(turns))]

        around = "\n "

        def pieces(beside: str) -> list[str]:
            contents = [f"{beside}{code}{beside}" for code in codes]
            marked = [{**turn, "content": content} for turn, content in zip(turns, contents, strict=True)]
            rest = self.render([*marked, *following], tools, opens_turn=opens_turn)
            parts = []
            for code in codes:
                before, found, rest = rest.partition(code)
                if not found:
                    raise RenderError(f"the chat template leaves out a turn of the conversation {_shown(messages)}")
                parts.append(before)
            return [*parts, rest]

        bare, spaced = pieces(""), pieces(around)
        trims = tuple(
            (not spaced[n].endswith(bare[n] + around), not spaced[n + 1].startswith(around + bare[n + 1]))
            for n in range(len(codes))
        )
        places: list[Preceding] = ["nothing", *["text" for _ in codes]]  # type: ignore[list-item]
        ids = (
            self.special.ids(part, marks, self.texts, behind=place) for part, place in zip(bare, places, strict=True)
        )
        return TemplateParts(tuple(map(tuple, ids)), trims)


def _with_reasoning(message: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers passes it on: what was thought under the names that templates read."""
    given = {name: value for name, value in message.items() if value is not None}
    thought = next((given[name] for name in _REASONING if name in given), None)
    return given if thought is None else {"thinking": thought, **given, "reasoning_content": thought}


def _without(message: Message, names: Sequence[str]) -> Message:
    return {name: value for name, value in message.items() if name not in names}


def _shown(messages: Sequence[Mapping[str, Any]]) -> str:
    """Roles as an error message shows them: the first few, each cut."""
    shown = [str(message.get("role"))[:20] for message in messages[:8]]
    return f"of roles {shown}" + (f" and {len(messages) - 8} more" if len(messages) > 8 else "")
