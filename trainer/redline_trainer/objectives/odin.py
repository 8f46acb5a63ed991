"""ODIN (arXiv 2402.07319): a second head learns the length, so that the score depends less on it.

There are two linear heads on the last token: quality ``r_Q`` (the model's own head) and length ``r_L``, which is used
for training only. With L the lengths of the 2n responses of a forward pass, in tokens, and rho Pearson's correlation
over them, the loss of its n pairs is

    sum -log sigmoid((r_Q + r_L)_w - (r_Q + r_L)_l)
      + n lambda_L (|rho(r_Q, L)| - rho(r_L, L)) + n lambda_O |cos(W_Q, W_L)|

so that the length head learns the part of the preference that depends on length, and the quality head the rest. The
correlations are computed over one forward pass. Unlike the ranking loss, they depend on how a step is split into
passes, and over a single pair they are always 1 or -1 and have no effect. The cosine, instead of an inner product,
makes the last term independent of the heads' scale.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redline_model.inference.score_head import linear_float32
from redline_trainer.correlation import pearson
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.bradley_terry import ScalarObjective
from redline_trainer.objectives.label_smoothing import SmoothedLabels
from redline_trainer.objectives.pairs import both_sides

logger = logging.getLogger(__name__)

# Added to a product of variances. If all lengths are equal, 0/0 would give NaN gradients.
_EPSILON = 1e-12


class ODINObjective(ScalarObjective):
    """See the module's docstring. The model's own head is the quality head.

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
        # differs from hidden_size for some models (OPT's word_embed_proj_dim)
        width = self.forward.head_weight.shape[-1]
        self.length_head = nn.Linear(width, 1, bias=False, device=model.device, dtype=torch.float32)
        nn.init.normal_(self.length_head.weight, std=width**-0.5)
        self._length_weight = length_weight
        self._orthogonality_weight = orthogonality_weight
        self._has_warned = False

    def parameters(self) -> list[nn.Parameter]:
        """The weights of the length head."""
        return list(self.length_head.parameters())

    def state(self) -> dict[str, Any]:
        """The length head, and the labels if there are any."""
        return {**super().state(), "length_head": self.length_head.weight.detach().cpu().clone()}

    @torch.no_grad()
    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state`` in place."""
        super().load_state(state)
        self.length_head.weight.copy_(state["length_head"])

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons, see the module's docstring."""
        if len(examples) == 1 and not self._has_warned:
            logger.warning(
                "a forward pass has only one pair, so ODIN's length terms have no effect on it; "
                "increase max_batch_tokens to have more pairs per pass"
            )
            self._has_warned = True
        sides = both_sides(examples)
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
