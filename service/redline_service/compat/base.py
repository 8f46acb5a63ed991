"""What every drop-in body can do: say what it wants scored, and put the scores into its caller's form."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict

from redline.chat_template import ChatTemplateParser
from redline.messages import Message
from redline.text.chat_markup import (
    ChatMarkup,
    ParsedConversation,
    content_start,
    parse_conversation,
    parse_prompt_and_response,
    split_query,
    strip_ending,
)
from redline.wire import ChatMessage, FirstError, ItemScore, ScoreItem, Text
from redline_model.encoding.encoder import Encoder
from redline_model.errors import TooLongError

Texts = Annotated[list[Text], FirstError]
# A text may be so many times as long as any that the model reads, of which the oldest part is then cut; and this long
# in any case.
_MAX_EXCESS = 4
_FREE_LENGTH = 2**16
_NOTHING = re.compile(r"(?!)")


class CompatBody(BaseModel):
    """A body of another system. Fields that it does not name are the caller's own affair."""

    model_config = ConfigDict(extra="ignore")

    def check_lengths(self, encoder: Encoder) -> None:
        """Raise TooLongError for a text, or for ids, far beyond what the model reads, before any work is done on it."""
        if encoder.max_tokens is None or encoder.max_chars is None:
            return
        most_chars = max(_FREE_LENGTH, _MAX_EXCESS * encoder.max_chars)
        most_ids = max(_FREE_LENGTH, _MAX_EXCESS * encoder.max_tokens)
        for name in type(self).model_fields:
            value = getattr(self, name)
            # a list of numbers is one item
            is_many = isinstance(value, list) and not (value and isinstance(value[0], int))
            for one in value if is_many else [value]:
                length, most = (
                    (len(one), most_chars if isinstance(one, str) else most_ids) if _is_sized(one) else (0, 0)
                )
                if length > most:
                    raise TooLongError(f"{name} holds {length} characters or ids; at most {most} are looked at")


def _is_sized(value: Any) -> bool:
    return isinstance(value, (str, list))


@dataclass(frozen=True)
class ConversationParser:
    """What a body is read with. ``ends``: strings that end a sequence, beyond those of known templates.

    Texts in the form of the model's own chat template are read by what that template writes; others by the markup of
    known families (``redline.text.chat_markup``), or refused.
    """

    encoder: Encoder
    ends: Sequence[str] = ()

    def parse_conversation(self, text: str) -> ParsedConversation:
        """A whole rendered conversation. Raises PromptBoundaryError."""
        own = self.encoder.template_parser
        for given, added in self._forms(text, own) if own is not None else ():
            found = own.parse_conversation(given) if own is not None else None
            if own is not None and found is not None:
                messages, answer, is_finished, start = found
                if not is_finished:
                    answer, is_finished = self._ending(answer, own)
                return ParsedConversation(_wired(messages), answer, is_finished, start - added)
        return parse_conversation(text, self.ends)

    def parse_query_and_prompt(self, query: str, prompt: str) -> ParsedConversation:
        """A prompt, and it or its end with the response behind it. Raises PromptBoundaryError."""
        return self.parse_prompt_and_response(*split_query(query, prompt, self.ends))

    def parse_prompt_and_response(self, prompt: str, response: str) -> ParsedConversation:
        """A prompt and its response, end tokens left in. Raises PromptBoundaryError."""
        own = self.encoder.template_parser
        for given, _ in self._forms(prompt, own) if own is not None else ():
            messages = own.parse_prompt(given) if own is not None else None
            if own is not None and messages is not None:
                return ParsedConversation(_wired(messages), *self._ending(response, own))
        return parse_prompt_and_response(prompt, response, has_ends=True, ends=self.ends)

    def _ending(self, response: str, own: ChatTemplateParser) -> tuple[str, bool]:
        """``response`` without padding and what closes it, and whether there was something."""
        answer, is_finished = own.strip_turn_end(strip_ending(response, (), ChatMarkup(_NOTHING, (), False))[0])
        if is_finished:
            return answer, True
        return strip_ending(
            response, self.ends, ChatMarkup(_NOTHING, tuple(end.strip() for end in own.turn_ends), False)
        )

    def _forms(self, text: str, own: ChatTemplateParser) -> Iterator[tuple[str, int]]:
        """The text, and without padding on its left, with a begin token; each with how much longer it has become."""
        yield text, 0
        at = content_start(text, self.ends)
        for begin in ("", *own.start_tokens):
            if (at, begin) != (0, ""):
                yield begin + text[at:], len(begin) - at


def _wired(messages: Sequence[Message]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(message) for message in messages]


@dataclass(frozen=True)
class ScoredBatch:
    """The scores of what was asked, in order, all of them finite.

    ``model``: the name it is served under. ``tokens``: that were read for all of it.
    """

    model: str
    items: Sequence[ItemScore]
    tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scores(self) -> list[float]:
        """A number an item."""
        return [float(item.score) for item in self.items]


class CompatRequest(Protocol):
    """A body of a drop-in endpoint."""

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """What is to be scored. Raises PromptBoundaryError."""
        ...

    def reply(self, scored: ScoredBatch) -> Any:
        """JSON-ready data, in the form that the caller reads."""
        ...
