"""Iterative data smoothing (arXiv 2401.16335): labels that move towards what the model has come to believe.

Every pair begins with the hard label y = 1 (the chosen side wins). Its loss is the cross-entropy
``-y log sigmoid(d) - (1 - y) log sigmoid(-d)``, ``d = r_w - r_l``, and after each visit
``y <- (1 - beta) y + beta sigmoid(d)``. Pairs seen often, or labelled by mistake, stop pulling on the model.
The prediction is that of the visit's own forward pass, before the step (**ours**: no second pass).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class SmoothedLabels:
    """A table of soft labels, one a training pair.

    Args:
        pairs: how many there are.
        rate: beta, 0 (labels stay hard) to 1 (a label is the last prediction).
    """

    def __init__(self, pairs: int, rate: float, device: torch.device | str = "cpu") -> None:
        self.values = torch.ones(pairs, device=device)
        self.rate = rate

    def loss_and_update(self, numbers: list[int], differences: Tensor) -> Tensor:
        """The summed cross-entropy of the pairs ``numbers``, whose ``r_w - r_l`` are ``differences`` ``(B,)``.

        Afterwards their labels move towards the predictions.
        """
        index = torch.tensor(numbers, device=self.values.device)
        labels = self.values[index]
        loss = F.binary_cross_entropy_with_logits(differences, labels, reduction="sum")
        self.values[index] = (1 - self.rate) * labels + self.rate * differences.detach().sigmoid()
        return loss

    def state(self) -> dict[str, Any]:
        """What a checkpoint must keep."""
        return {"labels": self.values.cpu().clone()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back."""
        self.values.copy_(state["labels"])
