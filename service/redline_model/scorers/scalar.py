"""The Bradley-Terry reward model (arXiv 2009.01325), the baseline: one scalar, on the last token."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.bundle.loading import SCORE_HEADS
from redline_model.correction.rewriter import Rewriter
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import NonFiniteError, UnsupportedError
from redline_model.extraction import Extraction, Mode, RewardSpec, aggregate_rewards
from redline_model.inference.causal_forward import CausalForward, PrefixedSequence
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.inference.probes import differs
from redline_model.inference.token_statistics import start_copy_to_cpu
from redline_model.scorer import ScoredResponse, unsupported_correction

M = TypeVar("M")


def linear_float32(hidden: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``hidden @ weight.T + bias`` in float32, under autocast, too: ``(N, hidden)`` to ``(N, out)``."""
    with torch.autocast(hidden.device.type, enabled=False):
        return F.linear(hidden.float(), weight.float(), None if bias is None else bias.float())


def score_head(model: Any) -> Any:
    """The linear layer that gives one number of a hidden state. Raises UnsupportedError where there is none."""
    for name in SCORE_HEADS:
        head = getattr(model, name, None)
        if getattr(head, "weight", None) is not None:
            return head
    raise UnsupportedError(
        f"{type(model).__name__} has no linear head that reads a score from a token's hidden state "
        f"({' or '.join(SCORE_HEADS)})"
    )


def sequence_of(item: EncodedItem) -> PrefixedSequence:
    """``[x, y]``."""
    return PrefixedSequence(tuple(item.prefix_ids), item.target_ids)


class ScalarForward:
    """``r(x, y)`` of a sequence-classification model of one label; used alike for scoring and training.

    Pooling goes by length, not by the pad id: transformers' own pooling looks for the last token that is not
    the pad id, which is wrong wherever a tokenizer pads with its end token.

    Raises:
        UnsupportedError: the model has no such head.
    """

    def __init__(self, model: Any, prefix_cache_tokens: int = 0) -> None:
        self._head = score_head(model)
        self.causal = CausalForward(model, prefix_cache_tokens)

    def __call__(self, items: Sequence[EncodedItem]) -> Tensor:
        """The reward of each item in arrangement ``judge``, ``(B,)`` in float32, read at the last token."""
        return self.read(self.pooled(items))

    def pooled(self, items: Sequence[EncodedItem]) -> Tensor:
        """The hidden state of each item's last token, ``(B, hidden)``."""
        last = [range(len(item.target_ids) - 1, len(item.target_ids)) for item in items]
        return self.causal([sequence_of(item) for item in items], last)

    def values(self, sequences: Sequence[PrefixedSequence], wanted: Sequence[range]) -> Tensor:
        """The head read at the branches' ``wanted`` positions, one after the other, ``(N,)`` in float32."""
        return self.read(self.causal(sequences, wanted))

    @property
    def head_weight(self) -> Tensor:
        """The head's weights, ``(1, hidden)``."""
        weight: Tensor = self._head.weight
        return weight

    def read(self, hidden: Tensor) -> Tensor:
        """The head's value of hidden states ``(N, hidden)``, ``(N,)``, computed in float32 whatever the weights are."""
        head = self._head
        if not head.weight.is_floating_point():  # quantised: its own code alone knows what the numbers mean
            return head(hidden).squeeze(-1).float()  # type: ignore[no-any-return]
        return linear_float32(hidden, head.weight, getattr(head, "bias", None)).squeeze(-1)


@torch.no_grad()
def check_pooling(model: Any, source: object) -> None:
    """Raise UnsupportedError if the score that is read here is not the one that the model, from ``source``, gives."""
    text = model.config.get_text_config()
    ids = [token for token in (1 + 7 * n % (text.vocab_size - 1) for n in range(8)) if token != text.pad_token_id]
    own = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits.reshape(-1)
    item = EncodedItem([], ids, [], ids, [], "")
    if differs(ScalarForward(model)([item]), own, model):
        raise UnsupportedError(
            f"{source}: {type(model).__name__} does not read its score from the last token by a linear head alone"
        )


class ScalarOutput(NamedTuple):
    """The model's one number and how many tokens it is about."""

    reward: float
    tokens: int


class ClassifierScorer(ABC, Generic[M]):
    """What scorers around a sequence-classification model of one label have in common. See ``Scorer``."""

    kind: str
    modes: tuple[Mode, ...] = ()
    can_correct = False

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> None:
        self.model = model
        self.models = (model,)
        self._forward = ScalarForward(model, prefix_cache_tokens)
        self._pad_id = model.config.get_text_config().pad_token_id
        self.encoder = encoder
        self.extraction = extraction

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """See ``Scorer``."""
        return (self._forward.causal.cache,)

    def sequence(self, item: EncodedItem) -> PrefixedSequence:
        """What the model reads of an item, and from where on it is the item's own."""
        return sequence_of(item)

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item."""
        return self.sequence(item).tokens

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """What is not the branch's own, where passes are ragged."""
        return self.sequence(item).prefix if self._forward.causal.is_packed else None

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``."""
        return self._forward.causal.cost(self.sequence(item), beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self._forward.causal.batches([self.sequence(item) for item in items], max_tokens)

    @abstractmethod
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[M]]:
        """See ``Scorer``."""

    def forward(self, items: Sequence[EncodedItem]) -> list[M]:
        """See ``start_forward``."""
        return self.start_forward(items)()

    def rewriter(self) -> Rewriter[M]:
        """Always raises UnsupportedError."""
        raise unsupported_correction(self.kind)


class ScalarScorer(ClassifierScorer[ScalarOutput]):
    """One number a response, on its last token."""

    kind = "scalar"

    def sequence(self, item: EncodedItem) -> PrefixedSequence:
        """See ``ClassifierScorer``; in arrangement ``conversation`` it ends where transformers reads such a model.

        That is the last token that is not the pad token, so one earlier where a model pads with the token that closes
        a turn: its head was trained there.
        """
        if self.encoder.arrangement != "conversation":
            return sequence_of(item)
        ids = [*item.prefix_ids, *item.response_ids, *item.request_ids]
        end = len(ids)
        while end > 1 and ids[end - 1] == self._pad_id:
            end -= 1
        cut = min(len(item.prefix_ids), end - 1)
        return PrefixedSequence(tuple(ids[:cut]), ids[cut:end])

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[ScalarOutput]]:
        """See ``Scorer``; the scalar of each item."""
        sequences = [self.sequence(item) for item in items]
        copied = start_copy_to_cpu(
            self._forward.values(sequences, [range(len(b.own) - 1, len(b.own)) for b in sequences])
        )
        return lambda: [ScalarOutput(r, len(i.target_ids)) for r, i in zip(copied().tolist(), items, strict=True)]

    def to_rewards(self, output: ScalarOutput, spec: RewardSpec) -> ScoredResponse:
        """0 on every token but the last; raises NonFiniteError."""
        if not math.isfinite(output.reward):
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = [0.0] * (output.tokens - 1) + [output.reward]
        score = aggregate_rewards(torch.tensor(rewards, dtype=torch.float64), spec.aggregate)
        return ScoredResponse(score, rewards, None)
