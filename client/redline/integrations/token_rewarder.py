"""Token rewards on the token ids that a policy sampled; the common part of all integrations. Needs no framework."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from redline.aclient import AsyncRewardClient
from redline.client import RewardClient
from redline.errors import ProtocolError
from redline.http.exchange import DEFAULT_URL
from redline.spans import Span
from redline.text.chat_markup import parse_prompt
from redline.text.token_spans import token_spans
from redline.wire import ChatMessage, ItemScore, PromptInput, ScoreItem, ScoreOptions


@dataclass(frozen=True)
class SampledResponse:
    """A sampled response: its text, one span per token id, and whether it ended with an end token.

    ``spans``: one per id without padding; the end token has an empty span at the end of the text.
    """

    text: str
    spans: list[Span]
    is_finished: bool


@dataclass(frozen=True)
class TokenRewards:
    """``rewards``: one per response id, 0.0 on padding; ``score``: their aggregate."""

    score: float
    rewards: list[float]


def decode_sampled(
    ids: Sequence[int], decode: Callable[[Sequence[int]], str], end_ids: Collection[int], pad_id: int | None = None
) -> SampledResponse:
    """The text of sampled ids, padding on the right left out.

    Args:
        decode: ids to text, special tokens included: all of the policy's tokens are scored, except its end token.
        end_ids: ids that end a response; of several at the end, the first is the policy's and the rest is padding.
    """
    count = len(ids)
    while count > 0 and (ids[count - 1] == pad_id or ids[count - 1] in end_ids):
        count -= 1
    is_finished = count < len(ids) and ids[count] in end_ids
    text, spans = token_spans(decode, list(ids[:count]))
    return SampledResponse(text, [*spans, (len(text), len(text))] if is_finished else spans, is_finished)


def service_address(url: str | None = None, key: str | None = None) -> tuple[str, str | None]:
    """URL and key of the service; by default ``REDLINE_URL`` and ``REDLINE_KEY`` in the environment."""
    return url or os.environ.get("REDLINE_URL", DEFAULT_URL), key or os.environ.get("REDLINE_KEY")


def to_messages(prompt: PromptInput) -> str | list[ChatMessage]:
    """A prompt as text or as ``ChatMessage`` objects; rendered text is parsed into messages.

    Raises:
        PromptBoundaryError: as ``redline.text.chat_markup.parse_prompt``.
        pydantic.ValidationError: a message is not a valid ``ChatMessage``.
    """
    if isinstance(prompt, str):
        return parse_prompt(prompt)
    return [
        message if isinstance(message, ChatMessage) else ChatMessage.model_validate(dict(message)) for message in prompt
    ]


class ClientPerEventLoop:
    """One asyncio client per event loop, because connections cannot be used from another loop.

    Args:
        url, key: by default ``REDLINE_URL`` and ``REDLINE_KEY`` in the environment.
    """

    def __init__(self, url: str | None = None, key: str | None = None) -> None:
        self._url = url
        self._key = key
        self._clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncRewardClient] = WeakKeyDictionary()

    def get(self) -> AsyncRewardClient:
        """The client of the running event loop."""
        loop = asyncio.get_running_loop()
        if loop not in self._clients:
            url, key = service_address(self._url, self._key)
            self._clients[loop] = AsyncRewardClient(url, key=key)
        return self._clients[loop]


class TokenRewarder:
    """A service's rewards on a policy's own tokens; the two tokenizers need not be related.

    Args:
        tokenizer: the policy's, with ``decode``, ``eos_token_id`` and ``pad_token_id`` as in transformers.
        end_ids: every id that ends a response; by default ``eos_token_id`` alone. Chat models often have several.
        client, aclient: by default made from ``url`` and ``key``, whose defaults are ``REDLINE_URL`` and
            ``REDLINE_KEY`` in the environment.
    """

    def __init__(
        self,
        tokenizer: Any,
        *,
        url: str | None = None,
        key: str | None = None,
        end_ids: Collection[int] | None = None,
        model: str = "default",
        options: ScoreOptions | None = None,
        client: RewardClient | None = None,
        aclient: AsyncRewardClient | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._url, self._key = service_address(url, key)
        self.end_ids = frozenset(end_ids if end_ids is not None else {tokenizer.eos_token_id} - {None})
        self._model = model
        self._options = options or ScoreOptions(on_too_long="truncate")
        self._client = client
        self._aclient = aclient
        self._aclients = ClientPerEventLoop(self._url, self._key)

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def item(self, prompt: PromptInput, ids: Sequence[int]) -> ScoreItem:
        """The item that asks for the rewards of ``ids``.

        A prompt that is text may be rendered: it is parsed (``redline.text.chat_markup``).

        Raises:
            PromptBoundaryError: a rendered prompt cannot be parsed.
        """
        sampled = decode_sampled(ids, self._decode, self.end_ids, self._tokenizer.pad_token_id)
        return ScoreItem.model_validate(
            {
                "prompt": to_messages(prompt),
                "response": sampled.text,
                "finished": sampled.is_finished,
                "token_offsets": sampled.spans or None,
            }
        )

    def score(self, prompts: Sequence[PromptInput], responses: Sequence[Sequence[int]]) -> list[TokenRewards]:
        """Rewards of sampled ids, in order.

        Raises:
            PromptBoundaryError: a rendered prompt cannot be parsed.
            ItemsFailedError: a response could not be scored; it never gets reward 0 instead.
            ProtocolError, ServiceError, ConnectionFailedError: as ``RewardClient.score``.
        """
        if self._client is None:
            self._client = RewardClient(self._url, key=self._key)
        items = [self.item(prompt, ids) for prompt, ids in zip(prompts, responses, strict=True)]
        result = self._client.score(items, model=self._model, options=self._options)
        return [_padded(item, len(ids)) for item, ids in zip(result.scored(), responses, strict=True)]

    async def ascore(self, prompts: Sequence[PromptInput], responses: Sequence[Sequence[int]]) -> list[TokenRewards]:
        """``score``, asynchronously."""
        client = self._aclient or self._aclients.get()
        items = [self.item(prompt, ids) for prompt, ids in zip(prompts, responses, strict=True)]
        result = await client.score(items, model=self._model, options=self._options)
        return [_padded(item, len(ids)) for item, ids in zip(result.scored(), responses, strict=True)]


def _padded(item: ItemScore, count: int) -> TokenRewards:
    if len(item.rewards) > count:
        raise ProtocolError(f"{len(item.rewards)} rewards for {count} tokens")
    return TokenRewards(item.score, [*item.rewards, *([0.0] * (count - len(item.rewards)))])
