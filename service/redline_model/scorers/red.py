"""Reward redistribution (R3HF / RED, arXiv 2411.08302): a scalar reward model's score, token by token.

``r_t = R(x, y_<=t) - R(x, y_<t)`` with ``R(x, y_<1) = R(x)``: what each token adds to the score so far. The head of
a Bradley-Terry model is read at the prompt's last token and at every response token, in one pass, for a causal
model's states there do not depend on what follows. The rewards telescope: their sum is ``R(x, y) - R(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redline_model.encoding.encoder import EncodedItem
from redline_model.errors import NonFiniteError
from redline_model.extraction import Reading, aggregate_rewards
from redline_model.inference.causal_forward import Branch
from redline_model.inference.token_statistics import copy_off
from redline_model.scorer import Judgement
from redline_model.scorers.scalar import ClassifierScorer


class RedistributedScorer(ClassifierScorer[Tensor]):
    """The head read after every response token; a token's reward is what it adds."""

    kind = "red"

    def branch(self, item: EncodedItem) -> Branch:
        """``[x, y]``, the prompt's last token counted to the branch's own: the head is read there, too."""
        return Branch(tuple(item.prefix_ids[:-1]), [*item.prefix_ids[-1:], *item.target_ids])

    @torch.inference_mode()
    def launch(self, items: Sequence[EncodedItem]) -> Callable[[], list[Tensor]]:
        """See ``Scorer``; ``R`` at the prompt's last token and after each response token, ``(T + 1,)``, float32."""
        branches = [self.branch(item) for item in items]
        sizes = [len(item.target_ids) + 1 for item in items]
        copied = copy_off(self._forward.values(branches, [range(size) for size in sizes]))
        return lambda: list(torch.split(copied(), sizes))

    def read(self, measured: Tensor, reading: Reading) -> Judgement:
        """The differences of ``R``, ``(T,)``; raises NonFiniteError."""
        if not torch.isfinite(measured).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = measured.double().diff()
        return Judgement(aggregate_rewards(rewards, reading.aggregate), rewards.tolist(), None)
