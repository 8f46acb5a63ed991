"""Q-function reward model, Q-RM (arXiv 2505.23363): a token's reward is the logit of that token.

``r_t = Z(x, y_<t)[y_t]``, the logit of a causal language model at the token that was taken, before any softmax. The
model is a discriminator, not a generator: ``ranking_loss`` fits the mean logit of a response by Bradley-Terry, and the
logits then are a Q-function up to scale. The score that the loss ranks is the aggregate ``mean``, the default of new
bundles of this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.correction.rewriter import Correction
from redline_model.encoding.items import EncodedItem
from redline_model.errors import NonFiniteError
from redline_model.extraction import aggregate_rewards
from redline_model.inference.target_logits import response_only
from redline_model.inference.token_statistics import start_copy_to_cpu
from redline_model.kinds import KindSpec
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse
from redline_model.scorers._direct import DirectScorer


def ranking_loss(chosen: Sequence[Tensor], rejected: Sequence[Tensor]) -> Tensor:
    """``-log sigmoid(mean(Z_w) - mean(Z_l))``, summed over pairs; each element: logits ``(T,)`` of a response."""
    better = torch.stack([logits.mean() for logits in chosen])
    worse = torch.stack([logits.mean() for logits in rejected])
    return -F.logsigmoid(better - worse).sum()


class QRMScorer(DirectScorer[Tensor]):
    """Scores with the logits of the response's tokens. See ``redline_model.scorer.Scorer``."""

    kind = "qrm"

    @torch.inference_mode()
    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Tensor]]:
        """See ``Scorer``; the logits of each item's target tokens, ``(T,)``, float32."""
        parts = [
            logits.gather(-1, ids.unsqueeze(-1)).squeeze(-1).float()
            for logits, ids in self._forward.logits([response_only(item) for item in items])
        ]
        values = start_copy_to_cpu(torch.cat(parts))
        return lambda: list(torch.split(values(), [len(item.target_ids) for item in items]))

    def to_rewards(self, output: Tensor, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The logits. Raises NonFiniteError."""
        if not torch.isfinite(output).all():
            raise NonFiniteError("the model's output for this item holds NaN or infinity")
        rewards = output.double()
        return ScoredResponse(aggregate_rewards(rewards, spec.aggregate), rewards.tolist(), None)


KIND = KindSpec(
    description="A Q-function reward model (arXiv 2505.23363): each token earns the logit that the model gives it.",
    architecture="causal_lm",
    make_scorer=QRMScorer.from_model,
    aggregate="mean",
)
