"""What the request formats of other frameworks share: length checks, parsing of conversations, scores for the reply."""

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
# A text may be this many times as long as the model can read (its oldest part is then cut off), and at least
# `_MIN_LENGTH_LIMIT` characters or ids long whatever the model can read.
_MAX_EXCESS = 4
_MIN_LENGTH_LIMIT = 2**16
_NEVER_MATCHES = re.compile(r"(?!)")


class CompatRequest(Protocol):
    """The body of a request to a compatible endpoint."""

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """The items to score. Raises PromptBoundaryError if prompt and response cannot be told apart."""
        ...

    def reply(self, result: CompatResult) -> Any:
        """The response body that the caller's framework reads, as JSON-serialisable data."""
        ...


class CompatRequestModel(BaseModel):
    """Base class of request bodies. Fields that the body does not declare are ignored."""

    model_config = ConfigDict(extra="ignore")

    def check_lengths(self, encoder: Encoder) -> None:
        """Check the length of each text and each list of ids before any work is done on them.

        Raises:
            TooLongError: one is several times longer than the model can read.
        """
        if encoder.max_tokens is None or encoder.max_chars is None:
            return
        max_chars = max(_MIN_LENGTH_LIMIT, _MAX_EXCESS * encoder.max_chars)
        max_ids = max(_MIN_LENGTH_LIMIT, _MAX_EXCESS * encoder.max_tokens)
        for name in type(self).model_fields:
            value = getattr(self, name)
            # a list of numbers is the ids of one item
            is_many = isinstance(value, list) and not (value and isinstance(value[0], int))
            for item in value if is_many else [value]:
                if not isinstance(item, (str, list)):
                    continue
                limit = max_chars if isinstance(item, str) else max_ids
                if len(item) > limit:
                    unit = "characters" if isinstance(item, str) else "ids"
                    raise TooLongError(f"{name} has {len(item)} {unit}; at most {limit} are accepted")


@dataclass(frozen=True)
class ConversationParser:
    """Splits rendered conversations into messages and response.

    Texts in the form of the model's own chat template are parsed by what that template writes. Other texts are parsed
    by the markup of known model families (``redline.text.chat_markup``), or refused.

    ``ends``: strings that end a sequence, in addition to those of known chat templates.
    """

    encoder: Encoder
    ends: Sequence[str] = ()

    def parse_conversation(self, text: str) -> ParsedConversation:
        """Parse a rendered conversation that ends with the response. Raises PromptBoundaryError."""
        template_parser = self.encoder.template_parser
        if template_parser is not None:
            for variant, added in self._variants(text, template_parser):
                parsed = template_parser.parse_conversation(variant)
                if parsed is not None:
                    messages, response, is_finished, start = parsed
                    if not is_finished:
                        response, is_finished = self._split_ending(response, template_parser)
                    return ParsedConversation(_to_wire(messages), response, is_finished, start - added)
        return parse_conversation(text, self.ends)

    def parse_query_and_prompt(self, query: str, prompt: str) -> ParsedConversation:
        """Parse a prompt, and a query that is the prompt (or its end) followed by the response.

        Raises PromptBoundaryError.
        """
        return self.parse_prompt_and_response(*split_query(query, prompt, self.ends))

    def parse_prompt_and_response(self, prompt: str, response: str) -> ParsedConversation:
        """Parse a rendered prompt, and a response that may contain end tokens. Raises PromptBoundaryError."""
        template_parser = self.encoder.template_parser
        if template_parser is not None:
            for variant, _ in self._variants(prompt, template_parser):
                messages = template_parser.parse_prompt(variant)
                if messages is not None:
                    return ParsedConversation(_to_wire(messages), *self._split_ending(response, template_parser))
        return parse_prompt_and_response(prompt, response, has_ends=True, ends=self.ends)

    def _split_ending(self, response: str, template_parser: ChatTemplateParser) -> tuple[str, bool]:
        """``response`` without padding and end tokens, and whether it had an end token."""
        unpadded = strip_ending(response, (), ChatMarkup(_NEVER_MATCHES, (), False))[0]
        text, is_finished = template_parser.strip_turn_end(unpadded)
        if is_finished:
            return text, True
        template_ends = tuple(end.strip() for end in template_parser.turn_ends)
        return strip_ending(response, self.ends, ChatMarkup(_NEVER_MATCHES, template_ends, False))

    def _variants(self, text: str, template_parser: ChatTemplateParser) -> Iterator[tuple[str, int]]:
        """``text``, then ``text`` without its left padding and with each begin token of the template.

        Each variant comes with the number of characters that it is longer than ``text``.
        """
        yield text, 0
        start = content_start(text, self.ends)
        for begin in ("", *template_parser.start_tokens):
            if (start, begin) != (0, ""):
                yield begin + text[start:], len(begin) - start


def _to_wire(messages: Sequence[Message]) -> list[ChatMessage]:
    return [ChatMessage.model_validate(message) for message in messages]


@dataclass(frozen=True)
class CompatResult:
    """The scored items of a request to a compatible endpoint, from which its reply is made. All scores are finite.

    ``model``: the name under which the model is served. ``items``: in the order of the request. ``tokens``: tokens of
    all items. ``created``: seconds since 1970. ``id``: a random id of the reply.
    """

    model: str
    items: Sequence[ItemScore]
    tokens: int
    created: int = field(default_factory=lambda: int(time.time()))
    id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @property
    def scores(self) -> list[float]:
        """One score per item."""
        return [float(item.score) for item in self.items]
