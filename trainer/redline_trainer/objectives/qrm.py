"""The objective of Q-function reward models (Q-RM, arXiv 2505.23363).

``-log sigmoid(mean_t Z(x, y_<t)[y_t] - mean_t Z(x, y'_<t)[y'_t])``, mean over pairs: Bradley-Terry on the mean of the
logits of the tokens that were taken. The same logits are the token rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from redline_model.inference.target_logits import CausalTargets, direct_sequence, response_only
from redline_model.scorers.qrm import ranking_loss
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.pairs import PairObjective, both_sides
from redline_trainer.objectives.target_loss import target_logits


class QRMObjective(PairObjective):
    """See the module's docstring.

    Args:
        model: the transformers model that is trained; adapters may be injected into it.
    """

    def __init__(self, model: Any) -> None:
        self._forward = CausalTargets.probed(model)
        super().__init__(self._forward.forward, direct_sequence)

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        sides = [response_only(side) for side in both_sides(examples)]
        logits = torch.split(target_logits(self._forward, sides), [len(side.target_ids) for side in sides])
        return ranking_loss(logits[: len(examples)], logits[len(examples) :])
