"""Reward redistribution (R3HF / RED, arXiv 2411.08302): a scalar reward model's score, token by token.

``r_t = R(x, y_<=t) - R(x, y_<t)`` with ``R(x, y_<1) = R(x)``: what each token adds to the score so far. The head of a
Bradley-Terry model is read at the prompt's last token and at every response token. One pass is enough, because a causal
model's hidden states do not depend on later tokens. The rewards telescope: their sum is ``R(x, y) - R(x)``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.errors import NonFiniteError
from redline_model.extraction import aggregate_rewards
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.token_statistics import start_copy_to_cpu
from redline_model.kinds import KindSpec
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse
from redline_model.scorers._classifier import ClassifierScorer


class RedistributedScorer(ClassifierScorer[Tensor]):
    """Reads the score head after every response token; a token's reward is the increase."""

    kind = "red"

    def sequence(self, item: EncodedItem) -> PrefixedSequence:
        """``[x, y]``; the prompt's last token belongs to ``suffix``, because the head is read there too."""
        return PrefixedSequence(tuple(item.prefix_ids[:-1]), [*item.prefix_ids[-1:], *item.target_ids])

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Tensor]]:
        """See ``Scorer``; ``R`` at the prompt's last token and after each response token, ``(T + 1,)``, float32."""
        sequences = [self.sequence(item) for item in items]
        sizes = [len(item.target_ids) + 1 for item in items]
        values = start_copy_to_cpu(self._forward.values(sequences, [range(size) for size in sizes]))
        return lambda: list(torch.split(values(), sizes))

    def to_rewards(self, output: Tensor, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The differences of ``R``, ``(T,)``. Raises NonFiniteError."""
        if not torch.isfinite(output).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = output.double().diff()
        return ScoredResponse(aggregate_rewards(rewards, spec.aggregate), rewards.tolist(), None)


KIND = KindSpec(
    description="A Bradley-Terry model read at every token (reward redistribution, arXiv 2411.08302): each token earns "
    "what it adds to the score of the response so far.",
    architecture="classifier",
    make_scorer=RedistributedScorer.from_model,
)
