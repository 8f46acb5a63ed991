"""The objective of plain language models: maximum likelihood of the chosen responses."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.inference.target_logits import CausalTargets, response_only
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.target_loss import weighted_nll


class SFTObjective(Objective[EncodedItem]):
    """``L = -E[log pi(y_w | x)]``, mean over the tokens of the chosen responses. Rejected responses are not read."""

    def __init__(self, model: Any) -> None:
        self._forward = CausalTargets.probed(model)
        self._device = model.device

    def examples(self, pair: EncodedPair) -> list[EncodedItem]:
        """The chosen response directly after its prompt."""
        return [response_only(pair.chosen)]

    def batches(self, examples: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """Examples of one prompt are in one batch if its computation can be shared; otherwise of similar length."""
        return self._forward.planner.batches(examples, max_tokens)

    def size(self, example: EncodedItem) -> int:
        """Number of the response's tokens."""
        return len(example.target_ids)

    def tokens(self, example: EncodedItem) -> int:
        """Tokens of prompt and response."""
        return len(example.prefix_ids) + len(example.target_ids)

    def loss(self, examples: Sequence[EncodedItem]) -> Tensor:
        """Summed over the tokens of the responses, in nats."""
        weights = torch.ones(sum(map(self.size, examples)), device=self._device)
        return weighted_nll(self._forward, examples, weights)
