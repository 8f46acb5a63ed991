"""The Bradley-Terry objective of scalar reward models: chosen responses should score higher than rejected ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.score_head import ScalarForward
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.label_smoothing import SmoothedLabels


class ScalarObjective(Objective[EncodedPair]):
    """Bradley-Terry: ``-log sigmoid(r_w - r_l)`` (arXiv 2009.01325), mean over comparisons.

    A pair with a mismatched response is two comparisons: the chosen response should also score higher than that one.

    Args:
        labels: soft labels; None for hard labels.
    """

    def __init__(self, model: Any, labels: SmoothedLabels | None = None) -> None:
        self.forward = ScalarForward.probed(model)
        self._labels = labels

    def examples(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself, and its chosen against its mismatched response. Both sides of a pair are in one batch."""
        return [pair] if pair.mismatched is None else [pair, pair._replace(rejected=pair.mismatched)]

    def batches(self, examples: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
        """Pairs of one prompt are in one batch if its computation can be shared; otherwise pairs of similar length."""
        causal = self.forward.causal
        if not causal.is_packed:
            return pack_by_length(
                examples, lambda example: 2 * max(map(self._length, (example.chosen, example.rejected))), max_tokens
            )
        # both sides of a comparison are packed as one sequence, so that they are in one forward pass
        pairs = [
            PrefixedSequence(
                tuple(example.chosen.prefix_ids), [*example.chosen.target_ids, *example.rejected.target_ids]
            )
            for example in examples
        ]
        return causal.batches(pairs, max_tokens)

    def _length(self, side: EncodedItem) -> int:
        return len(side.prefix_ids) + len(side.target_ids)

    def size(self, example: EncodedPair) -> int:
        """1: an example is one comparison."""
        return 1

    def tokens(self, example: EncodedPair) -> int:
        """Tokens of both sides."""
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
        """Restore ``state`` in place."""
        if self._labels is not None:
            self._labels.load_state(state)
