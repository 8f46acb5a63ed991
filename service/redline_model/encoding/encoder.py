"""(prompt, response) -> token ids. The template's text and choices live in the bundle, never in a caller.

A prompt is rendered and read as one text, as transformers does (``redline.chat_template``); a response is read as it
stands behind other text, and put behind it. So a prompt is a common prefix of all its responses, and a response has
the same ids behind all prompts that end alike. What spells a special token in a caller's text is read as text. A turn
marker of ordinary characters, which text could spell, is refused in prompts; in responses it is text like any other
and is scored.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from redline.chat_template import ChatTemplateParser, Preceding, TemplateParts
from redline.messages import Message, MessageError, normalized
from redline.text.token_spans import Span, token_spans
from redline_model.encoding.guarded_tokenizer import GuardedTokenizer
from redline_model.encoding.prompt_layout import key_of, laid_out, make_layout
from redline_model.encoding.size_limits import bounded_item
from redline_model.encoding.sized_cache import SizedCache
from redline_model.errors import (
    BadIdsError,
    EmptyResponseError,
    InvalidPromptError,
    TooLongError,
    UnsupportedError,
)
from redline_model.options import Template

Prompt = str | Sequence[Message]

# Entries of the caches below, in characters and token ids together; an id takes about 36 bytes.
_MAX_CACHED_PROMPTS = 2**21
_MAX_CACHED_LITERALS = 2**18


class Item(NamedTuple):
    """A (prompt, response) as a caller gives it: text, or ids of the model's own tokenizer.

    ``tools``: what the model may call, for its chat template.
    """

    prompt: Prompt | Sequence[int]
    response: str | Sequence[int]
    is_finished: bool = True
    on_too_long: Literal["error", "truncate"] = "error"
    has_only_end: bool = False  # an empty text that stands for a lone end-of-sequence token
    tools: Sequence[Any] | None = None


@dataclass(frozen=True)
class EncodedItem:
    """An item as ids, ready for any scorer.

    ``prefix_ids``: the rendered prompt up to the response. ``response_ids``: the response without its end token.
    ``target_ids``: ``response_ids`` and, if the response is finished, the end token; the T tokens that are judged.
    ``instruction_ids``: what stands between the response and its rewrite. ``offsets``: a span a target token.
    """

    prefix_ids: list[int]
    response_ids: list[int]
    instruction_ids: list[int]
    target_ids: list[int]
    offsets: list[Span]
    text: str = field(repr=False)
    is_finished: bool = True
    is_truncated: bool = False


# How a scorer's sequence is made of the pieces of an EncodedItem:
# "rewrite"         [prefix, response, request, target], one causal sequence
# "encoder_decoder" encoder [prefix, response, request], decoder [target]
# "prompt_response" [prefix, target], one causal sequence
# "conversation"    [prefix, response, request], one causal sequence as the model's own chat template renders it; what
#                   stands for the response need not be the target's ids
Arrangement = Literal["rewrite", "encoder_decoder", "prompt_response", "conversation"]


class Encoder:
    """Tokenises items for one bundle. Thread-safe: it only reads.

    Args:
        tokenizer: a fast tokenizer (offsets are needed) with an end-of-sequence token.
        arrangement: how the scorer puts the pieces together; it decides what counts against ``max_tokens``.
        max_tokens: the longest sequence the model reads, None for no limit.
        max_target_tokens: the longest target of an encoder-decoder model, where its decoder reads less than that.

    Raises:
        UnsupportedError: the tokenizer is slow or has no end-of-sequence token.
    """

    def __init__(
        self,
        tokenizer: Any,
        template: Template,
        *,
        arrangement: Arrangement,
        vocab_size: int,
        max_tokens: int | None,
        max_target_tokens: int | None = None,
    ) -> None:
        if not getattr(tokenizer, "is_fast", False):
            raise UnsupportedError("the tokenizer is not a fast one; token rewards need its character offsets")
        if tokenizer.eos_token_id is None:
            raise UnsupportedError("the tokenizer has no end-of-sequence token")
        self.tokenizer = tokenizer
        self.template = template
        self.end_id: int = tokenizer.eos_token_id
        self.vocab_size = vocab_size
        self.max_tokens = max_tokens
        self.max_target_tokens = max_target_tokens
        self.arrangement = arrangement
        self.texts = GuardedTokenizer(tokenizer)
        self.layout = make_layout(template, tokenizer, self.texts)
        head, tail = self.texts.around()
        is_plain = template.style == "plain"  # which puts its head in front itself
        is_framed = arrangement == "encoder_decoder"
        self._begins: tuple[list[int], ...] = ([], head)  # what stands before the first text of a sequence
        self._head_ids, self._tail_ids = (head if not is_plain else [], tail) if is_framed else ([], [])
        # a longer text has more tokens than the model reads, whatever it says
        self.max_chars = None if max_tokens is None else max_tokens * max(map(len, tokenizer.get_vocab()))
        # several responses to one prompt come in requests of their own
        self._prompts: SizedCache[str, tuple[list[int], list[int]]] = SizedCache(
            self._lay_out_whole, lambda key, ids: len(key) + sum(map(len, ids)), _MAX_CACHED_PROMPTS
        )
        self._literals: SizedCache[str, TemplateParts] = SizedCache(
            self._lay_out,
            lambda key, template_parts: len(key) + sum(map(len, template_parts.ids)),
            _MAX_CACHED_LITERALS,
        )

    @cached_property
    def template_parser(self) -> ChatTemplateParser | None:
        """Reads texts that were rendered with the model's own chat template; None where it has none."""
        return None if self.layout.chat is None else ChatTemplateParser(self.layout.chat)

    @cached_property
    def _has_hidden_space(self) -> bool:
        """Whether a policy writes a space in front of its answer that the answer's text does not show."""
        is_policy = self.template.style == "policy" and self.template_parser is not None
        return is_policy and self.template_parser.has_space_before_answer and self.texts.drops_space()  # type: ignore[union-attr]

    def _lay_out_whole(self, key: str) -> tuple[list[int], list[int]]:
        before, behind = laid_out(self.layout.whole, key)
        return [*self._head_ids, *before], [*behind, *self._tail_ids]

    def _lay_out(self, key: str) -> TemplateParts:
        ids, trims = laid_out(self.layout.template_parts, key)
        ids = (*ids[:-1], (*ids[-1], *self._tail_ids))
        return TemplateParts(((*self._head_ids, *ids[0]), *ids[1:]), trims)

    def _check_ids(self, ids: Sequence[int], what: str) -> list[int]:
        for position, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise BadIdsError(f"{what}[{position}] is {token}; the vocabulary holds 0 to {self.vocab_size - 1}")
        return list(ids)

    def _messages(self, prompt: Prompt | Sequence[int]) -> tuple[list[Message], list[list[int]] | None]:
        """The prompt as messages, and the ids of their contents where it is given by ids."""
        if isinstance(prompt, str):
            return [{"role": "user", "content": prompt}], None
        if not prompt:
            raise InvalidPromptError("the prompt is an empty list")
        if isinstance(prompt[0], int):
            return [{"role": "user", "content": ""}], [self._check_ids(prompt, "prompt_ids")]  # type: ignore[arg-type]
        try:
            messages = [normalized(message) for message in prompt]
        except MessageError as error:
            raise InvalidPromptError(f"the prompt {error}") from error
        if messages[-1]["role"] == "assistant":
            raise InvalidPromptError("the prompt ends with an assistant turn; the response is that turn")
        return messages, None

    def encode_prompt(
        self, prompt: Prompt | Sequence[int], spare: int | None = None, tools: Sequence[Any] | None = None
    ) -> tuple[list[int], list[int], bool]:
        """``(prefix_ids, request_ids, is_truncated)``; with ``spare`` the oldest content ids are cut to fit it.

        Raises:
            InvalidPromptError: the template refuses the prompt, leaves part of it out, or would read it as another.
        """
        messages, contents = self._messages(prompt)
        if contents is None and spare is None:
            before, behind = self._prompts(key_of(messages, tools))
            self._check_prefix(before)
            return list(before), list(behind), False
        blank = [{**message, "content": ""} for message in messages]
        template_parts, trims = self._literals(key_of(blank, tools))
        if contents is None:
            triples = zip(messages, trims, template_parts, strict=False)
            contents = [
                self.texts.user_text_ids(_trimmed(message["content"], *ends), self._place(literal))
                for message, ends, literal in triples
            ]
        is_truncated = False
        if spare is not None:
            excess = sum(map(len, template_parts[:-1])) + sum(map(len, contents)) - spare
            for position, content in enumerate(contents):
                cut = min(max(excess, 0), len(content))
                contents[position] = content[cut:]
                is_truncated |= cut > 0
                excess -= cut
        prefix: list[int] = []
        for literal, content in zip(template_parts, [*contents, []], strict=False):
            prefix += [*literal, *content]
        self._check_prefix(prefix)
        return prefix, list(template_parts[-1]), is_truncated

    def _check_prefix(self, prefix: Sequence[int]) -> None:
        if not prefix and self.arrangement == "prompt_response":
            raise InvalidPromptError("nothing is left of the prompt; its last token is where the response begins")

    def _place(self, before: Sequence[int]) -> Preceding:
        """What stands before a text that follows ``before``; the tokens put before a sequence are none of it."""
        if self.layout.reads_apart or list(before) in self._begins:
            return "nothing"
        return self.texts.behind(before)

    def encode_response(self, item: Item, prefix: Sequence[int] = ()) -> tuple[list[int], list[Span], str, bool]:
        """``(ids without end token, spans, text, is_finished)`` of the item's response behind ``prefix``."""
        # a decoder's text begins with the response
        place: Preceding = "nothing" if self.arrangement == "encoder_decoder" else self._place(prefix)
        if isinstance(item.response, str):
            text = item.response
            gap = " " if self._has_hidden_space and text[:1].strip() else ""
            ids, spans = self.texts.foreign(gap + text, place)
            spans = [(max(0, start - len(gap)), max(0, end - len(gap))) for start, end in spans]
            if not ids and not (item.has_only_end and item.is_finished):
                raise EmptyResponseError("the response is empty: there is no token to judge")
            return ids, spans, text, item.is_finished
        ids = self._check_ids(item.response, "response_ids")
        if not ids:
            raise EmptyResponseError("response_ids is empty: there is no token to judge")
        is_finished = ids[-1] == self.end_id
        if is_finished and not item.is_finished:
            raise BadIdsError("response_ids end with the end token, and the response is said to be unfinished")
        ids = ids[:-1] if is_finished else ids
        if self.end_id in ids:
            raise BadIdsError(f"response_ids hold the end token {self.end_id} before their end")
        text = self.texts.decode(ids)
        return ids, self._spans(ids, text, place), text, is_finished

    def _spans(self, ids: list[int], text: str, place: Preceding) -> list[Span]:
        places: list[Preceding] = [place] if place == "nothing" else [place, "nothing"]
        for one in places:  # text at a beginning: decoding takes off the first space
            again = self.texts.foreign(text, one)
            if again.ids == ids:
                return again.spans
        # sampled ids need not be the canonical tokenization of their text
        return token_spans(self.texts.decode, ids)[1]

    def length(self, prefix: int, response: int, request: int, target: int) -> int:
        """Tokens that count against ``max_tokens``, from the lengths of the pieces."""
        if self.arrangement == "rewrite":
            return prefix + response + request + target
        if self.arrangement == "encoder_decoder":
            return max(prefix + response + request, target)
        return prefix + target

    def encode(self, item: Item, *, is_bounded: bool = True) -> EncodedItem:
        """Encode one item; ``is_bounded`` False leaves lengths to the caller.

        Raises:
            TooLongError: it needs more than ``max_tokens`` and truncation was not asked for or does not help, or the
                response has more than ``max_target_tokens``, bounded or not.
            ItemError: any other of its kinds, see ``redline_model.errors``.
        """
        is_cut = False
        if is_bounded and self.max_tokens is not None:
            assert self.max_chars is not None
            item, is_cut = bounded_item(item, self.max_tokens, self.max_chars)
        prefix, request, is_truncated = self.encode_prompt(item.prompt, tools=item.tools)
        ids, spans, text, is_finished = self.encode_response(item, prefix)
        targets = [*ids, self.end_id] if is_finished else ids
        if self.max_target_tokens is not None and len(targets) > self.max_target_tokens:
            raise TooLongError(
                f"the response has {len(targets)} tokens and the model's decoder reads {self.max_target_tokens}"
            )
        if is_finished:
            spans = [*spans, (len(text), len(text))]
        needed = self.length(len(prefix), len(ids), len(request), len(targets))
        if is_bounded and self.max_tokens is not None and needed > self.max_tokens:
            reason = f"the item needs {needed} tokens and the model reads {self.max_tokens}"
            if item.on_too_long == "error":
                raise TooLongError(reason)
            spare = len(prefix) - (needed - self.max_tokens)
            prefix, request, is_truncated = self.encode_prompt(item.prompt, spare=spare, tools=item.tools)
            if self.length(len(prefix), len(ids), len(request), len(targets)) > self.max_tokens:
                raise TooLongError(f"{reason}; its response alone is too long, and only prompts are truncated")
        return EncodedItem(prefix, ids, request, targets, spans, text, is_finished, is_truncated or is_cut)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a rewrite. Raises TokenizerError."""
        return self.texts.decode(ids, skip_special_tokens=True)


def _trimmed(text: str, is_left: bool, is_right: bool) -> str:
    """``text`` as a template that takes off white space at its beginning or end writes it."""
    text = text.lstrip() if is_left else text
    return text.rstrip() if is_right else text
