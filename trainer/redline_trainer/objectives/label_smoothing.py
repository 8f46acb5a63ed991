"""Iterative data smoothing (arXiv 2401.16335): labels of pairs move towards the model's predictions.

Every pair begins with the hard label y = 1 (the chosen response wins). Its loss is the cross-entropy
``-y log sigmoid(d) - (1 - y) log sigmoid(-d)``, ``d = r_w - r_l``, and after each visit
``y <- (1 - beta) y + beta sigmoid(d)``. This reduces the influence of pairs that are seen often or have a wrong label.
**Ours**: the prediction is from the forward pass of the loss, before the step, so that no second pass is needed.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SmoothedLabels:
    """Soft labels, one per training pair.

    Args:
        pairs: number of pairs.
        rate: beta, 0 (labels stay hard) to 1 (a label is the last prediction).
    """

    def __init__(self, pairs: int, rate: float, device: torch.device | str = "cpu") -> None:
        self.values = torch.ones(pairs, device=device)
        self.rate = rate

    def loss_and_update(self, numbers: list[int], differences: Tensor) -> Tensor:
        """The summed cross-entropy of the pairs ``numbers`` with ``r_w - r_l`` = ``differences`` ``(B,)``.

        Then their labels move towards the predictions.
        """
        index = torch.tensor(numbers, device=self.values.device)
        labels = self.values[index]
        loss = F.binary_cross_entropy_with_logits(differences, labels, reduction="sum")
        self.values[index] = (1 - self.rate) * labels + self.rate * differences.detach().sigmoid()
        return loss

    def state(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"labels": self.values.cpu().clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state`` in place."""
        self.values.copy_(state["labels"])
