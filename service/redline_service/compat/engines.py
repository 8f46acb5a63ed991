"""What inference engines answer: vLLM's ``/classify`` and ``/pooling``, and SGLang's native ``/classify``.

Clients of these engines send one string a sample: a conversation rendered with the reward model's own template. Scores
are raw, whatever the engine's default: a sigmoid over one label makes rewards that no longer tell good from better.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, PrivateAttr, Tag, model_validator

from redline.messages import content_fields
from redline.text.chat_markup import ParsedConversation, PromptBoundaryError, to_score_item
from redline.text.token_spans import Span, token_spans
from redline.wire import ChatMessage, FirstError, ScoreItem, Text
from redline.wire.inputs import Tools
from redline_service.compat.base import CompatBody, ConversationParser, ScoredBatch, Texts

Ids = Annotated[list[int], FirstError]
IdLists = Annotated[list[Ids], FirstError]


def _decoder(reader: ConversationParser) -> Callable[[Sequence[int]], str]:
    return reader.encoder.text_tokenizer.decode


def _checked(ids: Ids, reader: ConversationParser) -> Ids:
    for position, token in enumerate(ids):
        if not 0 <= token < reader.encoder.vocab_size:
            raise PromptBoundaryError(
                f"id {token} at {position} is none of the vocabulary of {reader.encoder.vocab_size}"
            )
    return ids


def _exchange(given: str | Ids, reader: ConversationParser) -> ParsedConversation:
    text = given if isinstance(given, str) else _decoder(reader)(_checked(given, reader))
    return reader.parse_conversation(text)


class _VLLMBody(CompatBody):
    input: Text | Texts | Ids | IdLists | None = None
    messages: Annotated[list[ChatMessage], FirstError] | None = None
    tools: Tools | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.input is None and self.messages is None:
            raise ValueError("the body must hold 'input' or 'messages'")
        return self

    def given(self) -> list[str | Ids]:
        """The inputs one by one."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [self.input]
        return list(self.input or [])  # type: ignore[arg-type]

    def conversations(self, reader: ConversationParser) -> list[ParsedConversation]:
        """Raises PromptBoundaryError."""
        if self.messages is None:
            return [_exchange(given, reader) for given in self.given()]
        if len(self.messages) < 2 or self.messages[-1].role != "assistant":
            raise PromptBoundaryError("the messages do not end with an assistant's turn: there is no response to score")
        more = content_fields(self.messages[-1].model_extra or {})
        if more:
            raise PromptBoundaryError(f"the response carries {', '.join(map(repr, more))}; a response is text")
        return [ParsedConversation(self.messages[:-1], self.messages[-1].content, True)]

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        return [to_score_item(conversation, tools=self.tools) for conversation in self.conversations(reader)]

    def activated(self, score: float) -> float:
        """The score as asked for: raw, unless an activation is asked for in so many words."""
        return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, score)))) if self.use_activation else score

    def page(self, scored: ScoredBatch, name: str, data: list[dict[str, Any]]) -> dict[str, Any]:
        """vLLM's frame around its answers."""
        frame = {"id": f"{name}-{scored.id}", "object": "list", "created": scored.created, "model": scored.model}
        usage = {"prompt_tokens": scored.tokens, "total_tokens": scored.tokens, "completion_tokens": 0}
        return {**frame, "data": [{"index": n, **row} for n, row in enumerate(data)], "usage": usage}


class VLLMClassifyBody(_VLLMBody):
    """vLLM's classification request; verl sends ``{"model", "input": text, "use_activation": false}``.

    Read in vLLM 0.33, ``entrypoints/pooling/classify``, and verl 0.9.1, ``experimental/reward_loop``: unknown fields
    are let pass, as an older ``activation``.
    """

    def reply(self, scored: ScoredBatch) -> Any:
        """``data[i].probs[-1]`` is the score."""
        rows = [{"label": "LABEL_0", "probs": [self.activated(score)], "num_classes": 1} for score in scored.scores]
        return self.page(scored, "classify", rows)


class EmbeddingsBody(_VLLMBody):
    """``/v1/embeddings``, as verl asks a reward model behind SGLang; ``data[-1].embedding[-1]`` is the score."""

    def reply(self, scored: ScoredBatch) -> Any:
        """An embedding of one number."""
        rows = [{"object": "embedding", "embedding": [self.activated(score)]} for score in scored.scores]
        return self.page(scored, "embd", rows)


class VLLMPoolingBody(_VLLMBody):
    """vLLM's pooling request. ``token_classify``: one row a token of the input, zeros outside the response.

    The tokens are those that the model's tokenizer makes of the input, special tokens read as such, or the ids that
    were sent. ``classify``: the score alone.
    """

    task: Literal["token_classify", "classify"] | None = None
    encoding_format: Literal["float"] = "float"
    # of each input: how many tokens it has, and which of them are the response's
    _rows: list[tuple[int, list[int]]] = PrivateAttr(default_factory=list)

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        if self.task == "classify":
            return super().items(reader)
        conversations = self.conversations(reader)
        if self.messages is not None:
            raise PromptBoundaryError("a reward a token of the input needs the input as text or ids, not as messages")
        self._rows = []
        items = []
        for given, conversation in zip(self.given(), conversations, strict=True):
            count, tokens, spans = _tokens_of_response(given, conversation, reader)
            self._rows.append((count, tokens))
            items.append(to_score_item(conversation, token_offsets=spans))
        return items

    def reply(self, scored: ScoredBatch) -> Any:
        """``data[i].data``: rows of one number."""
        if self.task == "classify":
            return self.page(
                scored, "pooling", [{"object": "pooling", "data": [self.activated(s)]} for s in scored.scores]
            )
        told = []
        for (count, tokens), item in zip(self._rows, scored.items, strict=True):
            values = [0.0] * count
            for token, reward in zip(tokens, item.rewards, strict=True):
                values[token] = reward
            told.append({"object": "pooling", "data": [[value] for value in values]})
        return self.page(scored, "pooling", told)


def _tokens_of_response(
    given: str | Ids, conversation: ParsedConversation, reader: ConversationParser
) -> tuple[int, list[int], list[Span]]:
    """How many tokens the input has, which of them are the response's, and their spans within it.

    The first token behind a finished response is its end token.
    """
    if isinstance(given, str):
        spans = reader.encoder.text_tokenizer.encode(given).spans
    else:
        spans = token_spans(_decoder(reader), given)[1]
    start, end = conversation.start, conversation.start + len(conversation.response)
    tokens, mine = [], []
    for n, (first, last) in enumerate(spans):
        if first < last and first < end and last > start:
            tokens.append(n)
            mine.append((max(first, start) - start, min(last, end) - start))
        elif conversation.is_finished and first >= end and first < last:
            tokens.append(n)
            mine.append((end - start, end - start))
            break
    if not tokens:
        raise PromptBoundaryError("no token of the input belongs to the response")
    return len(spans), tokens, mine


class SGLangBody(CompatBody):
    """SGLang's native request, ``text`` or ``input_ids``, one or many; read in 0.5.23, ``managers/io_struct.py``."""

    text: Text | Texts | None = None
    input_ids: Ids | IdLists | None = None

    @property
    def _is_one(self) -> bool:
        given = self.text if self.text is not None else self.input_ids
        return isinstance(given, str) or bool(given and isinstance(given[0], int))

    def items(self, reader: ConversationParser) -> list[ScoreItem]:
        """Raises PromptBoundaryError."""
        given: Any = self.text if self.text is not None else self.input_ids
        return [to_score_item(_exchange(one, reader)) for one in ([given] if self._is_one else given or [])]

    def reply(self, scored: ScoredBatch) -> Any:
        """An object for one text, a list for a list; ``embedding[0]`` is the score."""
        told = [
            {"embedding": [score], "meta_info": {"id": f"{scored.id}-{n}"}} for n, score in enumerate(scored.scores)
        ]
        return told[0] if self._is_one else told


def _engine(body: Any) -> str | None:
    fields = {name for name, value in body.items() if value is not None} if isinstance(body, dict) else set()
    if fields & {"text", "input_ids"}:
        return "sglang"
    return "vllm" if fields & {"input", "messages"} else None


ClassifyBody = Annotated[
    Annotated[VLLMClassifyBody, Tag("vllm")] | Annotated[SGLangBody, Tag("sglang")],
    Discriminator(
        _engine,
        custom_error_type="unknown_form",
        custom_error_message="the body must hold 'input' or 'messages' (vLLM), or 'text' or 'input_ids' (SGLang)",
    ),
]
