"""The objective of seq2seq reward models (arXiv 2409.00162): learn to rewrite the rejected into the chosen response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.inference.target_logits import probed_targets
from redline_trainer.encode_pairs import EncodedPair, correction_item, mismatch_item
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.target_loss import weighted_nll


class MappingExample(NamedTuple):
    """One training sequence of the seq2seq objective: an item of one of the mappings, and its weight in the loss."""

    item: EncodedItem
    weight: float


class Seq2SeqObjective(Objective[MappingExample]):
    """``L = -E[log pi(y_w|x, y_l) + w_id log pi(y_w|x, y_w)]`` (arXiv 2409.00162), mean over target tokens.

    **Ours**, if pairs have mismatched responses: the mismatch mapping ``log pi(y_w|x, y')``, with ``y'`` the chosen
    response to another prompt. Without it the model may ignore the prompt: if refusals only occur as chosen responses,
    it copies a refusal for every prompt.

    Args:
        identity_weight: ``w_id``; 0 disables the identity mapping.
        correction_weight: weight of the correction mapping; 0 disables it.
    """

    def __init__(self, model: Any, identity_weight: float = 1.0, correction_weight: float = 1.0) -> None:
        self._forward = probed_targets(model)
        self._device = model.device
        self._identity_weight = identity_weight
        self._correction_weight = correction_weight

    def examples(self, pair: EncodedPair) -> list[MappingExample]:
        """The examples of the correction, identity and mismatch mappings."""
        weighted_items = (
            (correction_item(pair), self._correction_weight),
            (pair.chosen, self._identity_weight),
            (mismatch_item(pair), 1.0),
        )
        return [MappingExample(item, weight) for item, weight in weighted_items if item is not None and weight > 0]

    def batches(self, examples: Sequence[MappingExample], max_tokens: int) -> Iterator[list[int]]:
        """Examples of one prompt are in one batch if its computation can be shared; otherwise of similar length."""
        return self._forward.planner.batches([example.item for example in examples], max_tokens)

    def size(self, example: MappingExample) -> int:
        """Number of target tokens."""
        return len(example.item.target_ids)

    def tokens(self, example: MappingExample) -> int:
        """Tokens of source and target together."""
        item = example.item
        return len(item.prefix_ids) + len(item.response_ids) + len(item.instruction_ids) + len(item.target_ids)

    def loss(self, examples: Sequence[MappingExample]) -> Tensor:
        """Weighted sum of the negative log-likelihoods of target tokens."""
        device = self._device
        sizes = torch.tensor([self.size(example) for example in examples], device=device)
        weights = torch.tensor([example.weight for example in examples], device=device).repeat_interleave(sizes)
        return weighted_nll(self._forward, [example.item for example in examples], weights)
