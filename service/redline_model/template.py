"""(prompt, response) -> token ids. The template's text and choices live in the bundle, never in a caller.

Every piece of foreign text is tokenised on its own, special tokens switched off, and spliced between the
template's literal pieces. Three things follow: a prompt is a common prefix of all its responses, a response
has the same ids wherever it stands, and no text can forge a turn marker.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from jinja2 import TemplateError
from pydantic import BaseModel, ConfigDict

from redline.token_spans import Span, token_spans
from redline_model.errors import (
    BadIdsError,
    EmptyResponseError,
    InvalidPromptError,
    TooLongError,
    UnsupportedError,
)
from redline_model.item_bounds import bounded_item
from redline_model.sized_cache import SizedCache
from redline_model.tokenizing import decoded, tokenized

Message = dict[str, str]
Prompt = str | Sequence[Message]

# Private-use characters: no tokenizer or chat template gives them a meaning.
_MARK = "\ue000{}\ue001"
# Entries of the caches below, in characters and token ids together; an id takes about 36 bytes.
_MAX_CACHED_PROMPTS = 2**21
_MAX_CACHED_LITERALS = 2**18


class Template(BaseModel):
    """How a conversation, a response and the request for its rewrite are laid out.

    ``style`` ``chat`` goes through the tokenizer's chat template: the conversation, the response as the
    assistant's turn, ``instruction`` as the user's next turn. ``plain`` uses the markers below. ``conversation``: the
    chat template and no instruction, see ``redline_model.conversation``.
    ``chat_kwargs`` are handed to the chat template; a fixed date keeps a rendering the same tomorrow.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    style: Literal["chat", "plain", "conversation"]
    instruction: str = "Rewrite your answer so that it is the best possible answer. Reply with the answer alone."
    turn: str = "{role}:\n"
    turn_end: str = "\n\n"
    rewrite: str = "Better answer:\n"
    chat_kwargs: dict[str, Any] = {"date_string": "01 Jan 2025", "enable_thinking": False}

    @classmethod
    def of_policy(cls, tokenizer: Any) -> Template:
        """The prompt that a policy is given: the chat template as it stands, or the prompt's bare text.

        The date alone is fixed, so that a score is the same tomorrow.
        """
        if getattr(tokenizer, "chat_template", None):
            return cls(style="chat", chat_kwargs={"date_string": "01 Jan 2025"})
        return cls(style="plain", turn="", turn_end="", rewrite="")

    @classmethod
    def fitting(cls, tokenizer: Any, instruction: str | None = None) -> Template:
        """``chat`` where the tokenizer has a chat template, else ``plain``."""
        chosen = cls(style="chat" if getattr(tokenizer, "chat_template", None) else "plain")
        return chosen if instruction is None else chosen.model_copy(update={"instruction": instruction})


class Item(NamedTuple):
    """A (prompt, response) as a caller gives it: text, or ids of the model's own tokenizer."""

    prompt: Prompt | Sequence[int]
    response: str | Sequence[int]
    is_finished: bool = True
    on_too_long: Literal["error", "truncate"] = "error"
    has_only_end: bool = False  # an empty text that stands for a lone end-of-sequence token


@dataclass(frozen=True)
class EncodedItem:
    """An item as ids, ready for any scorer.

    ``prefix_ids``: the rendered prompt up to the response. ``response_ids``: the response without its end token.
    ``target_ids``: ``response_ids`` and, if the response is finished, the end token; the T tokens that are judged.
    ``request_ids``: what stands between the response and its rewrite. ``offsets``: a span a target token.
    """

    prefix_ids: list[int]
    response_ids: list[int]
    request_ids: list[int]
    target_ids: list[int]
    offsets: list[Span]
    text: str = field(repr=False)
    is_finished: bool = True
    is_truncated: bool = False


# How a scorer's sequence is made of the pieces of an EncodedItem:
# "rewrite"         [prefix, response, request, target], one causal sequence
# "encoder_decoder" encoder [prefix, response, request], decoder [target]
# "judge"           [prefix, target], one causal sequence
# "conversation"    [prefix, response, request], one causal sequence as the model's own chat template renders it; what
#                   stands for the response need not be the target's ids
Arrangement = Literal["rewrite", "encoder_decoder", "judge", "conversation"]


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
        bare = tokenized(tokenizer, "a", add_special_tokens=False)["input_ids"]
        framed = tokenized(tokenizer, "a")["input_ids"]
        at = next((i for i in range(len(framed)) if framed[i : i + len(bare)] == bare), 0)
        self._head_ids, self._tail_ids = list(framed[:at]), list(framed[at + len(bare) :])
        # a longer text has more tokens than the model reads, whatever it says
        self.max_chars = None if max_tokens is None else max_tokens * max(map(len, tokenizer.get_vocab()))
        self._literals = SizedCache(
            self._lay_out, lambda roles, ids: sum(map(len, roles)) + sum(map(len, ids)), _MAX_CACHED_LITERALS
        )
        # several responses to one prompt come in requests of their own
        self._prompt_ids: SizedCache[str, tuple[int, ...]] = SizedCache(
            lambda text: tuple(self._text_ids(text)), lambda text, ids: len(text) + len(ids), _MAX_CACHED_PROMPTS
        )

    def _special(self, text: str) -> tuple[int, ...]:
        return tuple(tokenized(self.tokenizer, text, add_special_tokens=False)["input_ids"])

    def _text_ids(self, text: str) -> list[int]:
        return self.foreign_ids_and_spans(text)[0]

    def foreign_ids_and_spans(self, text: str) -> tuple[list[int], list[Span]]:
        """Ids of a text in which special tokens have no meaning, and the span of each. Raises TokenizerError."""
        encoded = tokenized(
            self.tokenizer, text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True
        )
        return list(encoded["input_ids"]), [(int(start), int(end)) for start, end in encoded["offset_mapping"]]

    def _lay_out(self, roles: tuple[str, ...]) -> tuple[tuple[int, ...], ...]:
        """The template's ids before each message, before the response, and after it."""
        marks = [_MARK.format(i) for i in range(len(roles) + 1)]
        template = self.template
        if template.style == "chat":
            messages = [{"role": r, "content": m} for r, m in zip(roles, marks, strict=False)]
            messages += [
                {"role": "assistant", "content": marks[-1]},
                {"role": "user", "content": template.instruction},
            ]
            try:
                text = self.tokenizer.apply_chat_template(
                    messages, tokenize=False, add_generation_prompt=True, **template.chat_kwargs
                )
            except (TemplateError, ValueError, KeyError) as error:
                raise InvalidPromptError(f"the chat template refuses roles {_shown(roles)}: {error}") from error
        else:
            turns = [
                template.turn.format(role=r.capitalize()) + m + template.turn_end
                for r, m in zip((*roles, "assistant"), marks, strict=True)
            ]
            text = "".join(turns) + template.rewrite
        literals: list[tuple[int, ...]] = []
        start = 0
        for mark in marks:
            end = text.find(mark, start)
            if end < 0:
                raise InvalidPromptError(f"the chat template leaves out a turn of roles {_shown(roles)}")
            literals.append(self._special(text[start:end]))
            start = end + len(mark)
        literals.append(self._special(text[start:]))
        if template.style == "plain" or self.arrangement == "encoder_decoder":
            literals[0] = (*self._head_ids, *literals[0])
        if self.arrangement == "encoder_decoder":
            literals[-1] = (*literals[-1], *self._tail_ids)
        return tuple(literals)

    def _check_ids(self, ids: Sequence[int], what: str) -> list[int]:
        for position, token in enumerate(ids):
            if not 0 <= token < self.vocab_size:
                raise BadIdsError(f"{what}[{position}] is {token}; the vocabulary holds 0 to {self.vocab_size - 1}")
        return list(ids)

    def _contents(self, prompt: Prompt | Sequence[int]) -> tuple[tuple[str, ...], list[list[int]]]:
        if isinstance(prompt, str):
            return ("user",), [list(self._prompt_ids(prompt))]
        if not prompt:
            raise InvalidPromptError("the prompt is an empty list")
        if isinstance(prompt[0], int):
            return ("user",), [self._check_ids(prompt, "prompt_ids")]  # type: ignore[arg-type]
        messages: Sequence[Message] = prompt  # type: ignore[assignment]
        roles = tuple(message["role"] for message in messages)
        if roles[-1] == "assistant":
            raise InvalidPromptError("the prompt ends with an assistant turn; the response is that turn")
        return roles, [list(self._prompt_ids(message["content"])) for message in messages]

    def encode_prompt(
        self, prompt: Prompt | Sequence[int], spare: int | None = None
    ) -> tuple[list[int], list[int], bool]:
        """``(prefix_ids, request_ids, is_truncated)``; with ``spare`` the oldest content ids are cut to fit it."""
        roles, contents = self._contents(prompt)
        literals = self._literals(roles)
        is_truncated = False
        if spare is not None:
            excess = sum(map(len, literals[:-1])) + sum(map(len, contents)) - spare
            for position, content in enumerate(contents):
                cut = min(max(excess, 0), len(content))
                contents[position] = content[cut:]
                is_truncated |= cut > 0
                excess -= cut
        prefix: list[int] = []
        for literal, content in zip(literals, [*contents, []], strict=False):
            prefix += [*literal, *content]
        if not prefix and self.arrangement == "judge":
            raise InvalidPromptError("nothing is left of the prompt; its last token is where the response begins")
        return prefix, list(literals[-1]), is_truncated

    def encode_response(self, item: Item) -> tuple[list[int], list[Span], str, bool]:
        """``(ids without end token, spans, text, is_finished)`` of the item's response."""
        if isinstance(item.response, str):
            text = item.response
            ids, spans = self.foreign_ids_and_spans(text)
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
        text = self._decode_all(ids)
        return ids, self._spans(ids, text), text, is_finished

    def _spans(self, ids: list[int], text: str) -> list[Span]:
        again, spans = self.foreign_ids_and_spans(text)
        # sampled ids need not be the canonical tokenization of their text
        return spans if again == ids else token_spans(self._decode_all, ids)[1]

    def _decode_all(self, ids: Sequence[int]) -> str:
        return decoded(self.tokenizer, ids, skip_special_tokens=False)

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
        ids, spans, text, is_finished = self.encode_response(item)
        targets = [*ids, self.end_id] if is_finished else ids
        if self.max_target_tokens is not None and len(targets) > self.max_target_tokens:
            raise TooLongError(
                f"the response has {len(targets)} tokens and the model's decoder reads {self.max_target_tokens}"
            )
        if is_finished:
            spans = [*spans, (len(text), len(text))]
        prefix, request, is_truncated = self.encode_prompt(item.prompt)
        needed = self.length(len(prefix), len(ids), len(request), len(targets))
        if is_bounded and self.max_tokens is not None and needed > self.max_tokens:
            reason = f"the item needs {needed} tokens and the model reads {self.max_tokens}"
            if item.on_too_long == "error":
                raise TooLongError(reason)
            spare = len(prefix) - (needed - self.max_tokens)
            prefix, request, is_truncated = self.encode_prompt(item.prompt, spare=spare)
            if self.length(len(prefix), len(ids), len(request), len(targets)) > self.max_tokens:
                raise TooLongError(f"{reason}; its response alone is too long, and only prompts are truncated")
        return EncodedItem(prefix, ids, request, targets, spans, text, is_finished, is_truncated or is_cut)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of a rewrite. Raises TokenizerError."""
        return decoded(self.tokenizer, ids, skip_special_tokens=True)


def _shown(roles: tuple[str, ...]) -> str:
    """Roles as an error message shows them: the first few, each cut."""
    shown = [role[:20] for role in roles[:8]]
    return f"{shown}" if len(roles) <= 8 else f"{shown} and {len(roles) - 8} more"
