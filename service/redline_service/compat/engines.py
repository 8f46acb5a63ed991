"""Formats of inference engines: vLLM's ``/classify`` and ``/pooling``, and SGLang's native ``/classify``.

Clients of these engines send one string per sample: a conversation rendered with the reward model's own chat template.
The scores are raw, whatever the engine's default: a sigmoid over one label is close to 1 for all good responses, so
that their rewards hardly differ.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, PrivateAttr, Tag, model_validator

from redline.messages import content_fields
from redline.spans import Span
from redline.text.chat_markup import ParsedConversation, PromptBoundaryError, to_score_item
from redline.text.token_spans import token_spans
from redline.wire import ChatMessage, FirstError, ScoreItem, Text
from redline.wire.inputs import Tools
from redline_service.compat.base import CompatRequestModel, CompatResult, ConversationParser, Texts

Ids = Annotated[list[int], FirstError]
IdLists = Annotated[list[Ids], FirstError]


def _decoder(parser: ConversationParser) -> Callable[[Sequence[int]], str]:
    return parser.encoder.text_tokenizer.decode


def _check_ids(ids: Ids, parser: ConversationParser) -> None:
    for position, token in enumerate(ids):
        if not 0 <= token < parser.encoder.vocab_size:
            raise PromptBoundaryError(
                f"id {token} at position {position} is not in the vocabulary of {parser.encoder.vocab_size} tokens"
            )


def _parse_input(text_or_ids: str | Ids, parser: ConversationParser) -> ParsedConversation:
    if isinstance(text_or_ids, str):
        return parser.parse_conversation(text_or_ids)
    _check_ids(text_or_ids, parser)
    return parser.parse_conversation(_decoder(parser)(text_or_ids))


class _VLLMRequest(CompatRequestModel):
    input: Text | Texts | Ids | IdLists | None = None
    messages: Annotated[list[ChatMessage], FirstError] | None = None
    tools: Tools | None = None
    use_activation: bool | None = None

    @model_validator(mode="after")
    def _check_has_input(self) -> Self:
        if self.input is None and self.messages is None:
            raise ValueError("the body must have a field 'input' or 'messages'")
        return self

    def inputs(self) -> list[str | Ids]:
        """The inputs as a list, each a text or a list of ids."""
        if isinstance(self.input, str):
            return [self.input]
        if self.input and isinstance(self.input[0], int):
            return [self.input]
        return list(self.input or [])  # type: ignore[arg-type]

    def conversations(self, parser: ConversationParser) -> list[ParsedConversation]:
        """The conversation of each input, or that of ``messages``. Raises PromptBoundaryError."""
        if self.messages is None:
            return [_parse_input(text_or_ids, parser) for text_or_ids in self.inputs()]
        if len(self.messages) < 2 or self.messages[-1].role != "assistant":
            raise PromptBoundaryError("the last message is not the assistant's, so there is no response to score")
        extra_fields = content_fields(self.messages[-1].model_extra or {})
        if extra_fields:
            raise PromptBoundaryError(
                f"the response has the fields {', '.join(map(repr, extra_fields))}; a response may only have text"
            )
        return [ParsedConversation(self.messages[:-1], self.messages[-1].content, True)]

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per input. Raises PromptBoundaryError."""
        return [to_score_item(conversation, tools=self.tools) for conversation in self.conversations(parser)]

    def apply_activation(self, score: float) -> float:
        """The raw score, or its sigmoid if the request sets ``use_activation``."""
        return 1.0 / (1.0 + math.exp(-max(-700.0, min(700.0, score)))) if self.use_activation else score

    def response_body(self, result: CompatResult, id_prefix: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """vLLM's response around ``rows``, one per input."""
        head = {"id": f"{id_prefix}-{result.id}", "object": "list", "created": result.created, "model": result.model}
        usage = {"prompt_tokens": result.tokens, "total_tokens": result.tokens, "completion_tokens": 0}
        return {**head, "data": [{"index": n, **row} for n, row in enumerate(rows)], "usage": usage}


class VLLMClassifyRequest(_VLLMRequest):
    """vLLM's classification request; verl sends ``{"model", "input": text, "use_activation": false}``.

    Source: vLLM 0.33, ``entrypoints/pooling/classify``, and verl 0.9.1, ``experimental/reward_loop``. Unknown fields
    are ignored, as is the older field ``activation``.
    """

    def reply(self, result: CompatResult) -> Any:
        """``data[i].probs[-1]`` is the score."""
        rows = [
            {"label": "LABEL_0", "probs": [self.apply_activation(score)], "num_classes": 1} for score in result.scores
        ]
        return self.response_body(result, "classify", rows)


class EmbeddingsRequest(_VLLMRequest):
    """verl's request to a reward model behind SGLang. It reads the score at ``data[-1].embedding[-1]``."""

    def reply(self, result: CompatResult) -> Any:
        """The score of each input as an embedding of one number."""
        rows = [{"object": "embedding", "embedding": [self.apply_activation(score)]} for score in result.scores]
        return self.response_body(result, "embd", rows)


class VLLMPoolingRequest(_VLLMRequest):
    """vLLM's pooling request.

    Task ``token_classify``: one reward per token of the input, 0 outside the response. The tokens are the ids that were
    sent, or those of the model's tokenizer if a text was sent, with special tokens parsed. Task ``classify``: one score
    per input.
    """

    task: Literal["token_classify", "classify"] | None = None
    encoding_format: Literal["float"] = "float"
    # for each input: its number of tokens, and the positions of those that belong to the response
    _response_positions: list[tuple[int, list[int]]] = PrivateAttr(default_factory=list)

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per input; for ``token_classify`` with the spans of its tokens. Raises PromptBoundaryError."""
        if self.task == "classify":
            return super().items(parser)
        conversations = self.conversations(parser)
        if self.messages is not None:
            raise PromptBoundaryError(
                "one reward per token of the input needs the input as text or ids, not as messages"
            )
        self._response_positions = []
        items = []
        for text_or_ids, conversation in zip(self.inputs(), conversations, strict=True):
            count, positions, spans = _response_tokens(text_or_ids, conversation, parser)
            self._response_positions.append((count, positions))
            items.append(to_score_item(conversation, token_offsets=spans))
        return items

    def reply(self, result: CompatResult) -> Any:
        """``data[i].data`` is a list of one score, or one list of one reward per token."""
        if self.task == "classify":
            rows = [{"object": "pooling", "data": [self.apply_activation(score)]} for score in result.scores]
            return self.response_body(result, "pooling", rows)
        rows = []
        for (count, positions), item in zip(self._response_positions, result.items, strict=True):
            rewards = [0.0] * count
            for position, reward in zip(positions, item.rewards, strict=True):
                rewards[position] = reward
            rows.append({"object": "pooling", "data": [[reward] for reward in rewards]})
        return self.response_body(result, "pooling", rows)


def _response_tokens(
    text_or_ids: str | Ids, conversation: ParsedConversation, parser: ConversationParser
) -> tuple[int, list[int], list[Span]]:
    """The number of tokens of the input, the positions of those of the response, and their spans in the response.

    The first token after a finished response is its end token; its span is empty.
    """
    if isinstance(text_or_ids, str):
        spans = parser.encoder.text_tokenizer.encode(text_or_ids).spans
    else:
        spans = token_spans(_decoder(parser), text_or_ids)[1]
    start, end = conversation.start, conversation.start + len(conversation.response)
    positions, response_spans = [], []
    for position, (first, last) in enumerate(spans):
        if first < last and first < end and last > start:
            positions.append(position)
            response_spans.append((max(first, start) - start, min(last, end) - start))
        elif conversation.is_finished and first >= end and first < last:
            positions.append(position)
            response_spans.append((end - start, end - start))
            break
    if not positions:
        raise PromptBoundaryError("no token of the input belongs to the response")
    return len(spans), positions, response_spans


class SGLangRequest(CompatRequestModel):
    """SGLang's native request: ``text`` or ``input_ids``, one sample or a list of samples.

    Source: SGLang 0.5.23, ``managers/io_struct.py``.
    """

    text: Text | Texts | None = None
    input_ids: Ids | IdLists | None = None

    @property
    def _is_single(self) -> bool:
        samples = self.text if self.text is not None else self.input_ids
        return isinstance(samples, str) or bool(samples and isinstance(samples[0], int))

    def items(self, parser: ConversationParser) -> list[ScoreItem]:
        """One item per sample. Raises PromptBoundaryError."""
        samples: Any = self.text if self.text is not None else self.input_ids
        if self._is_single:
            samples = [samples]
        return [to_score_item(_parse_input(sample, parser)) for sample in samples or []]

    def reply(self, result: CompatResult) -> Any:
        """An object for one sample, a list of objects for a list; ``embedding[0]`` is the score."""
        rows = [
            {"embedding": [score], "meta_info": {"id": f"{result.id}-{n}"}} for n, score in enumerate(result.scores)
        ]
        return rows[0] if self._is_single else rows


def _engine_of(body: Any) -> str | None:
    fields = {name for name, value in body.items() if value is not None} if isinstance(body, dict) else set()
    if fields & {"text", "input_ids"}:
        return "sglang"
    return "vllm" if fields & {"input", "messages"} else None


ClassifyRequest = Annotated[
    Annotated[VLLMClassifyRequest, Tag("vllm")] | Annotated[SGLangRequest, Tag("sglang")],
    Discriminator(
        _engine_of,
        custom_error_type="unknown_form",
        custom_error_message=(
            "the body must have a field 'input' or 'messages' (vLLM), or 'text' or 'input_ids' (SGLang)"
        ),
    ),
]
