"""The Bradley-Terry objective of scalar reward models: chosen responses should score higher than rejected ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from redline_model.inference.score_head import ScalarForward, prompt_and_response
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.label_smoothing import SmoothedLabels
from redline_trainer.objectives.pairs import PairObjective, both_sides


class ScalarObjective(PairObjective):
    """Bradley-Terry: ``-log sigmoid(r_w - r_l)`` (arXiv 2009.01325), mean over comparisons.

    A pair with a mismatched response is two comparisons: the chosen response should also score higher than that one.

    Args:
        labels: soft labels; None for hard labels.
    """

    def __init__(self, model: Any, labels: SmoothedLabels | None = None) -> None:
        self.forward = ScalarForward.probed(model)
        super().__init__(self.forward.causal, prompt_and_response)
        self._labels = labels

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        chosen, rejected = self.forward(both_sides(examples)).chunk(2)
        return self.ranking(examples, chosen - rejected)

    def ranking(self, examples: Sequence[EncodedPair], differences: Tensor) -> Tensor:
        """The summed cross-entropy of the comparisons, from ``r_w - r_l`` ``(B,)``."""
        if self._labels is None:
            return -F.logsigmoid(differences).sum()
        return self._labels.loss_and_update([example.number for example in examples], differences)

    def state(self) -> dict[str, Any]:
        """The labels, if they are soft."""
        return {} if self._labels is None else self._labels.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Restore ``state`` in place."""
        if self._labels is not None:
            self._labels.load_state(state)
