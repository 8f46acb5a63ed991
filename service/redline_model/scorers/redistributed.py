"""Reward redistribution (R3HF / RED, arXiv 2411.08302): a scalar reward model's score, token by token.

``r_t = R(x, y_<=t) - R(x, y_<t)`` with ``R(x, y_<1) = R(x)``: what each token adds to the score so far. The head of
a Bradley-Terry model is read at the prompt's last token and at every response token, in one pass, for a causal
model's states there do not depend on what follows. The rewards telescope: their sum is ``R(x, y) - R(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from redline_model.causal import Branch
from redline_model.errors import NonFiniteError
from redline_model.extraction import Extraction, Mode, Reading, aggregate_rewards
from redline_model.prefixes import Prefix
from redline_model.rewriting import Rewriter
from redline_model.scorers.protocol import Judgement, unsupported_correction
from redline_model.scorers.scalar import ScalarForward
from redline_model.statistics import copy_off
from redline_model.template import EncodedItem, Encoder


def branch_of(item: EncodedItem) -> Branch:
    """``[x, y]``, the prompt's last token counted to the branch's own: the head is read there, too."""
    return Branch(tuple(item.prefix_ids[:-1]), [*item.prefix_ids[-1:], *item.target_ids])


class RedistributedScorer:
    """Scores with a transformers sequence-classification model of one label. See ``Scorer``."""

    kind = "red"
    modes: tuple[Mode, ...] = ()
    can_correct = False

    def __init__(self, model: Any, encoder: Encoder, extraction: Extraction, *, prefix_cache_tokens: int = 0) -> None:
        self.model = model
        self.models = (model,)
        self._forward = ScalarForward(model, prefix_cache_tokens)
        self.encoder = encoder
        self.extraction = extraction

    def length(self, item: EncodedItem) -> int:
        """Tokens the model reads for this item."""
        return len(item.prefix_ids) + len(item.target_ids)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """The prompt but for its last token, where passes are ragged."""
        return branch_of(item).prefix if self._forward.causal.is_ragged else None

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``."""
        return self._forward.causal.cost(branch_of(item), beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self._forward.causal.batches([branch_of(item) for item in items], max_tokens)

    @torch.inference_mode()
    def launch(self, items: Sequence[EncodedItem]) -> Callable[[], list[Tensor]]:
        """See ``Scorer``; ``R`` at the prompt's last token and after each response token, ``(T + 1,)``, float32."""
        branches = [branch_of(item) for item in items]
        sizes = [len(item.target_ids) + 1 for item in items]
        copied = copy_off(self._forward.values(branches, [range(size) for size in sizes]))
        return lambda: list(torch.split(copied(), sizes))

    def measure(self, items: Sequence[EncodedItem]) -> list[Tensor]:
        """See ``launch``."""
        return self.launch(items)()

    def read(self, measured: Tensor, reading: Reading) -> Judgement:
        """The differences of ``R``, ``(T,)``; raises NonFiniteError."""
        if not torch.isfinite(measured).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = measured.double().diff()
        return Judgement(aggregate_rewards(rewards, reading.aggregate), rewards.tolist(), None)

    def rewriter(self) -> Rewriter[Tensor]:
        """Always raises UnsupportedError."""
        raise unsupported_correction(self.kind)
