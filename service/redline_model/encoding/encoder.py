"""Encode (prompt, response) pairs as token ids. The template and its settings come from the bundle, not from callers.

A prompt is rendered and tokenised as one text, as in transformers (``redline.chat_template``). A response is tokenised
as text that follows other text, and appended. So a prompt is a common prefix of all its responses, and a response has
the same ids after all prompts that end alike. Special tokens in a caller's text are tokenised as ordinary text. A turn
marker of ordinary characters is refused in prompts, because it would read as a new turn; in responses it is scored like
any other text.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from redline.chat_template import ChatTemplateParser, Preceding, TemplateParts
from redline.messages import Message, MessageError, Prompt, normalized
from redline.spans import Span
from redline.text.token_spans import token_spans
from redline_model.encoding.guarded_tokenizer import GuardedTokenizer
from redline_model.encoding.items import EncodedItem, Item
from redline_model.encoding.prompt_layout import apply_layout, make_layout, prompt_key
from redline_model.encoding.size_limits import limit_item
from redline_model.encoding.sized_cache import SizedCache
from redline_model.errors import (
    BadIdsError,
    EmptyResponseError,
    InvalidPromptError,
    TooLongError,
    UnsupportedError,
)
from redline_model.options import Template

# Sizes of the caches below, in characters plus token ids; an id takes about 36 bytes.
_MAX_CACHED_PROMPTS = 2**21
_MAX_CACHED_PARTS = 2**18


# How a scorer's sequence is composed of the parts of an EncodedItem:
# "rewrite"         [prefix, response, instruction, target], one causal sequence
# "encoder_decoder" encoder [prefix, response, instruction], decoder [target]
# "prompt_response" [prefix, target], one causal sequence
# "conversation"    [prefix, response, instruction], one causal sequence as the model's own chat template renders it;
#                   its ids for the response may differ from the target ids
Arrangement = Literal["rewrite", "encoder_decoder", "prompt_response", "conversation"]


class Encoder:
    """Tokenises items for one bundle. Thread-safe.

    Args:
        tokenizer: a fast tokenizer (offsets are needed) with an end-of-sequence token.
        arrangement: how the scorer composes its sequence; it decides what counts against ``max_tokens``.
        max_tokens: the longest sequence the model reads, None for no limit.
        max_target_tokens: the longest target of an encoder-decoder model, if it is less than ``max_tokens``.

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
        self.text_tokenizer = GuardedTokenizer(tokenizer)
        self.layout = make_layout(template, tokenizer, self.text_tokenizer)
        start_ids, closing_ids = self.text_tokenizer.special_ids_around()
        is_plain = template.style == "plain"  # its layout adds the start ids itself
        is_encoder_decoder = arrangement == "encoder_decoder"
        self._leading_ids: tuple[list[int], ...] = ([], start_ids)  # what can precede the first text of a sequence
        self._start_ids = start_ids if is_encoder_decoder and not is_plain else []
        self._closing_ids = closing_ids if is_encoder_decoder else []
        # a text with more characters certainly has more tokens than the model reads
        self.max_chars = None if max_tokens is None else max_tokens * max(map(len, tokenizer.get_vocab()))
        # cached because several responses to one prompt arrive in separate requests
        self._prompts: SizedCache[str, tuple[list[int], list[int]]] = SizedCache(
            self._layout_ids, lambda key, ids: len(key) + sum(map(len, ids)), _MAX_CACHED_PROMPTS
        )
        self._template_parts: SizedCache[str, TemplateParts] = SizedCache(
            self._layout_parts,
            lambda key, parts: len(key) + sum(map(len, parts.ids)),
            _MAX_CACHED_PARTS,
        )

    @cached_property
    def template_parser(self) -> ChatTemplateParser | None:
        """Parses texts that were rendered with the model's own chat template; None if it has none."""
        return None if self.layout.chat is None else ChatTemplateParser(self.layout.chat)

    @cached_property
    def _adds_leading_space(self) -> bool:
        """Whether a policy's answer begins with a space that its text does not have, because decoding removes it."""
        is_policy = self.template.style == "policy" and self.template_parser is not None
        return is_policy and self.template_parser.has_space_before_answer and self.text_tokenizer.drops_leading_space()  # type: ignore[union-attr]

    def _layout_ids(self, key: str) -> tuple[list[int], list[int]]:
        before, after = apply_layout(self.layout.ids, key)
        return [*self._start_ids, *before], [*after, *self._closing_ids]

    def _layout_parts(self, key: str) -> TemplateParts:
        ids, trims = apply_layout(self.layout.template_parts, key)
        ids = (*ids[:-1], (*ids[-1], *self._closing_ids))
        return TemplateParts(((*self._start_ids, *ids[0]), *ids[1:]), trims)

    def _check_ids(self, ids: Sequence[int], what: str) -> list[int]:
        for position, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise BadIdsError(f"{what}[{position}] is {token}; the vocabulary holds 0 to {self.vocab_size - 1}")
        return list(ids)

    def _messages(self, prompt: Prompt | Sequence[int]) -> tuple[list[Message], list[list[int]] | None]:
        """The prompt as messages, and the ids of their contents if it is given as ids."""
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
        self, prompt: Prompt | Sequence[int], max_prefix_tokens: int | None = None, tools: Sequence[Any] | None = None
    ) -> tuple[list[int], list[int], bool]:
        """``(prefix_ids, instruction_ids, is_truncated)``; ``max_prefix_tokens`` cuts the oldest ids of contents.

        Raises:
            InvalidPromptError: the template refuses the prompt or omits part of it, or the prompt has a turn marker.
        """
        messages, contents = self._messages(prompt)
        if contents is None and max_prefix_tokens is None:
            before, after = self._prompts(prompt_key(messages, tools))
            self._check_prefix(before)
            return list(before), list(after), False
        blank = [{**message, "content": ""} for message in messages]
        parts, trims = self._template_parts(prompt_key(blank, tools))
        if contents is None:
            contents_and_parts = zip(messages, trims, parts, strict=False)
            contents = [
                self.text_tokenizer.user_text_ids(_trimmed(message["content"], *ends), self._preceding(part))
                for message, ends, part in contents_and_parts
            ]
        is_truncated = False
        if max_prefix_tokens is not None:
            excess = sum(map(len, parts[:-1])) + sum(map(len, contents)) - max_prefix_tokens
            for position, content in enumerate(contents):
                cut = min(max(excess, 0), len(content))
                contents[position] = content[cut:]
                is_truncated |= cut > 0
                excess -= cut
        prefix: list[int] = []
        for part, content in zip(parts, [*contents, []], strict=False):
            prefix += [*part, *content]
        self._check_prefix(prefix)
        return prefix, list(parts[-1]), is_truncated

    def _check_prefix(self, prefix: Sequence[int]) -> None:
        if not prefix and self.arrangement == "prompt_response":
            raise InvalidPromptError("no token of the prompt is left, and the response needs one before it")

    def _preceding(self, before: Sequence[int]) -> Preceding:
        """What precedes a text that follows ``before``; special tokens at the start of a sequence do not count."""
        if self.layout.has_two_texts or list(before) in self._leading_ids:
            return "nothing"
        return self.text_tokenizer.preceding(before)

    def encode_response(self, item: Item, prefix: Sequence[int] = ()) -> tuple[list[int], list[Span], str, bool]:
        """``(ids without end token, spans, text, is_finished)`` of the item's response after ``prefix``."""
        # the decoder's sequence begins with the response
        preceding: Preceding = "nothing" if self.arrangement == "encoder_decoder" else self._preceding(prefix)
        if isinstance(item.response, str):
            text = item.response
            space = " " if self._adds_leading_space and text[:1].strip() else ""
            ids, spans = self.text_tokenizer.encode_user_text(space + text, preceding)
            spans = [(max(0, start - len(space)), max(0, end - len(space))) for start, end in spans]
            if not ids and not (item.has_only_end and item.is_finished):
                raise EmptyResponseError("the response is empty: there is no token to score")
            return ids, spans, text, item.is_finished
        ids = self._check_ids(item.response, "response_ids")
        if not ids:
            raise EmptyResponseError("response_ids is empty: there is no token to score")
        is_finished = ids[-1] == self.end_id
        if is_finished and not item.is_finished:
            raise BadIdsError("response_ids end with the end token, and the response is said to be unfinished")
        ids = ids[:-1] if is_finished else ids
        if self.end_id in ids:
            raise BadIdsError(f"response_ids hold the end token {self.end_id} before their end")
        text = self.text_tokenizer.decode(ids)
        return ids, self._spans(ids, text, preceding), text, is_finished

    def _spans(self, ids: list[int], text: str, preceding: Preceding) -> list[Span]:
        candidates: list[Preceding] = [preceding] if preceding == "nothing" else [preceding, "nothing"]
        for candidate in candidates:  # decoding removes the space at the beginning of a text
            encoded = self.text_tokenizer.encode_user_text(text, candidate)
            if encoded.ids == ids:
                return encoded.spans
        # sampled ids may differ from the canonical tokenization of their text
        return token_spans(self.text_tokenizer.decode, ids)[1]

    def length(self, prefix: int, response: int, instruction: int, target: int) -> int:
        """Tokens that count against ``max_tokens``, from the lengths of the parts."""
        if self.arrangement == "rewrite":
            return prefix + response + instruction + target
        if self.arrangement == "encoder_decoder":
            return max(prefix + response + instruction, target)
        return prefix + target

    def encode(self, item: Item, *, is_bounded: bool = True) -> EncodedItem:
        """Encode one item; with ``is_bounded`` False the caller checks ``max_tokens``.

        Raises:
            TooLongError: it needs more than ``max_tokens`` and truncation is not allowed or does not help, or the
                response has more than ``max_target_tokens``, bounded or not.
            ItemError: see its other subclasses in ``redline_model.errors``.
        """
        is_cut = False
        if is_bounded and self.max_tokens is not None:
            assert self.max_chars is not None
            item, is_cut = limit_item(item, self.max_tokens, self.max_chars)
        prefix, instruction, is_truncated = self.encode_prompt(item.prompt, tools=item.tools)
        ids, spans, text, is_finished = self.encode_response(item, prefix)
        targets = [*ids, self.end_id] if is_finished else ids
        if self.max_target_tokens is not None and len(targets) > self.max_target_tokens:
            raise TooLongError(
                f"the response has {len(targets)} tokens and the model's decoder reads {self.max_target_tokens}"
            )
        if is_finished:
            spans = [*spans, (len(text), len(text))]
        needed = self.length(len(prefix), len(ids), len(instruction), len(targets))
        if is_bounded and self.max_tokens is not None and needed > self.max_tokens:
            reason = f"the item needs {needed} tokens and the model reads {self.max_tokens}"
            if item.on_too_long == "error":
                raise TooLongError(reason)
            limit = len(prefix) - (needed - self.max_tokens)
            prefix, instruction, is_truncated = self.encode_prompt(
                item.prompt, max_prefix_tokens=limit, tools=item.tools
            )
            if self.length(len(prefix), len(ids), len(instruction), len(targets)) > self.max_tokens:
                raise TooLongError(f"{reason}; its response alone is too long, and only prompts are truncated")
        return EncodedItem(prefix, ids, instruction, targets, spans, text, is_finished, is_truncated or is_cut)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a rewrite. Raises TokenizerError."""
        return self.text_tokenizer.decode(ids, skip_special_tokens=True)


def _trimmed(text: str, is_left: bool, is_right: bool) -> str:
    """``text`` without white space at its beginning or end, as some templates write it."""
    text = text.lstrip() if is_left else text
    return text.rstrip() if is_right else text
