"""ODIN (arXiv 2402.07319): a second head that takes the length out of the first.

Two linear heads read the last token: quality ``r_Q`` (the model's own) and length ``r_L``, which is trained beside
it and thrown away. With L the lengths of the 2n responses of a forward pass, in tokens, and rho Pearson's
correlation over them, the loss of its n pairs is

    sum -log sigmoid((r_Q + r_L)_w - (r_Q + r_L)_l)
      + n lambda_L (|rho(r_Q, L)| - rho(r_L, L)) + n lambda_O |cos(W_Q, W_L)|

so that the length head explains what length explains and the quality head the rest. The correlations are of one
forward pass: unlike the ranking loss, they depend on how a step is cut into passes, and over one pair they are 1 or
-1 whatever the heads say, and teach nothing. The cosine (not the bare inner product) keeps the last term independent
of the heads' scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.score_head import linear_float32
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.label_smoothing import SmoothedLabels

logger = logging.getLogger(__name__)

# Added to a product of variances: equal lengths correlate with nothing, and a gradient of 0/0 would be NaN.
_EPSILON = 1e-12


class ODINObjective(ScalarObjective):
    """See the module. The model's own head is the quality head.

    Args:
        length_weight: lambda_L.
        orthogonality_weight: lambda_O.
    """

    def __init__(
        self,
        model: Any,
        *,
        length_weight: float = 1.0,
        orthogonality_weight: float = 1.0,
        labels: SmoothedLabels | None = None,
    ) -> None:
        super().__init__(model, labels)
        width = self.forward.head_weight.shape[-1]  # of some models not hidden_size (OPT's word_embed_proj_dim)
        self.length_head = nn.Linear(width, 1, bias=False, device=model.device, dtype=torch.float32)
        nn.init.normal_(self.length_head.weight, std=width**-0.5)
        self._length_weight = length_weight
        self._orthogonality_weight = orthogonality_weight
        self._has_warned = False

    def parameters(self) -> list[nn.Parameter]:
        """The length head's."""
        return list(self.length_head.parameters())

    def state(self) -> dict[str, Any]:
        """The length head, and the labels if there are any."""
        return {**super().state(), "length_head": self.length_head.weight.detach().cpu().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back, in place."""
        super().load_state(state)
        self.length_head.weight.copy_(state["length_head"])

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons, see the module."""
        if len(examples) == 1 and not self._has_warned:
            logger.warning(
                "a forward pass holds one pair, from which ODIN learns nothing about length; "
                "a larger max_batch_tokens puts more into one"
            )
            self._has_warned = True
        sides: list[EncodedItem] = [example.chosen for example in examples] + [example.rejected for example in examples]
        pooled = self.forward.pooled(sides)
        quality = self.forward.apply_head(pooled)
        length = linear_float32(pooled, self.length_head.weight).squeeze(-1)
        tokens = torch.tensor([len(side.target_ids) for side in sides], device=quality.device, dtype=torch.float32)
        chosen, rejected = (quality + length).chunk(2)
        length_penalty = pearson(quality, tokens, epsilon=_EPSILON).abs() - pearson(length, tokens, epsilon=_EPSILON)
        heads = self.forward.head_weight.float(), self.length_head.weight
        cosine = F.cosine_similarity(*heads, dim=-1).abs().sum()
        penalty = self._length_weight * length_penalty + self._orthogonality_weight * cosine
        return self.ranking(examples, chosen - rejected) + len(examples) * penalty
