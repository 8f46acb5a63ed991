"""The objective of scalar reward models: the chosen response is to get a higher score than the rejected one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from redline_model.encoding.encoder import EncodedItem
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.score_head import ScalarForward
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.label_smoothing import SmoothedLabels


class ScalarObjective(Objective[EncodedPair]):
    """Bradley-Terry: ``-log sigmoid(r_w - r_l)`` (arXiv 2009.01325), mean over comparisons.

    A pair with a mismatched response is two comparisons: the chosen response is also to beat that one.

    Args:
        labels: soft labels; None takes every label as certain.
    """

    def __init__(self, model: Any, labels: SmoothedLabels | None = None) -> None:
        self.forward = ScalarForward.probed(model)
        self._labels = labels

    def examples(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself, and its chosen side against the mismatched response; both sides of one are in one batch."""
        return [pair] if pair.mismatched is None else [pair, pair._replace(rejected=pair.mismatched)]

    def batches(self, examples: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
        """Pairs of one prompt together where its computation can be shared, else of like length."""
        causal = self.forward.causal
        if not causal.is_packed:
            return pack_by_length(examples, lambda example: 2 * max(map(self._length, (example.chosen, example.rejected))), max_tokens)
        # both sides of a comparison in one forward pass: they are packed as one sequence
        pairs = [
            PrefixedSequence(tuple(example.chosen.prefix_ids), [*example.chosen.target_ids, *example.rejected.target_ids]) for example in examples
        ]
        return causal.batches(pairs, max_tokens)

    def _length(self, side: EncodedItem) -> int:
        return len(side.prefix_ids) + len(side.target_ids)

    def size(self, example: EncodedPair) -> int:
        """One comparison."""
        return 1

    def tokens(self, example: EncodedPair) -> int:
        """Both sides."""
        return self._length(example.chosen) + self._length(example.rejected)

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        rewards = self.forward([example.chosen for example in examples] + [example.rejected for example in examples])
        chosen, rejected = rewards.chunk(2)
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
        """Put ``state`` back, in place."""
        if self._labels is not None:
            self._labels.load_state(state)
