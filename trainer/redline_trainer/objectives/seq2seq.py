"""The objective of seq2seq reward models (arXiv 2409.00162): learn to rewrite the rejected into the chosen response."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from redline_model.correction.word_diff import differences_between
from redline_model.encoding.items import EncodedItem
from redline_model.inference.target_logits import probed_targets
from redline_trainer.encode_pairs import EncodedPair, correction_item, mismatch_item, omission_item
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.target_loss import weighted_nll


class MappingExample(NamedTuple):
    """One training sequence of the seq2seq objective: an item of one of the mappings.

    ``weights``: in the loss, one for each id that the sequence predicts.
    """

    item: EncodedItem
    weights: list[float]


def edit_weights(source: Sequence[int], target: Sequence[int], weight: float) -> list[float]:
    """``weight`` for each target token that an edit writes, and for the one after a deletion; 1 for all others."""
    weights = [1.0] * len(target)
    if weight == 1:
        return weights
    for _, _, start, end in differences_between(source, target):
        # where tokens were only deleted, the one after them
        end = max(end, min(start + 1, len(target)))
        weights[start:end] = [weight] * (end - start)
    return weights


class Seq2SeqObjective(Objective[MappingExample]):
    """``L = -E[log pi(y_w|x, y_l) + w_id log pi(y_w|x, y_w)]`` (arXiv 2409.00162), mean over target tokens.

    **Ours**, if pairs have mismatched responses: the mismatch mapping ``log pi(y_w|x, y')``, with ``y'`` the chosen
    response to another prompt. Without it the model may ignore the prompt: if refusals only occur as chosen responses,
    it copies a refusal for every prompt.

    Args:
        identity_weight: ``w_id``; 0 disables the identity mapping.
        correction_weight: weight of the correction mapping; 0 disables it.
        sft_weight: weight of ``log pi(y_w | x)``, the response not in the context. It is read from the source of the
            identity mapping's sequence, so it costs no further pass. **Ours.**
        edit_weight: weight of target tokens that the source does not have; copies have weight 1. **Ours**; related to
            the edit weights of RLMEC (arXiv 2401.06081).
    """

    def __init__(
        self,
        model: Any,
        identity_weight: float = 1.0,
        correction_weight: float = 1.0,
        sft_weight: float = 0.0,
        edit_weight: float = 1.0,
    ) -> None:
        self._forward = probed_targets(model, reads_source=sft_weight > 0)
        self._device = model.device
        self._identity_weight = identity_weight
        self._correction_weight = correction_weight
        self._sft_weight = sft_weight
        self._edit_weight = edit_weight

    def examples(self, pair: EncodedPair) -> list[MappingExample]:
        """The examples of the correction, identity, mismatch and omission mappings."""
        weighted_items = (
            (correction_item(pair), self._correction_weight, 0.0),
            (pair.chosen, self._identity_weight, self._sft_weight),
            (mismatch_item(pair), 1.0, 0.0),
            (omission_item(pair), 1.0, 0.0),
        )
        return [
            MappingExample(item, self._weights(item, target_weight, source_weight))
            for item, target_weight, source_weight in weighted_items
            if item is not None and (target_weight > 0 or source_weight > 0)
        ]

    def _weights(self, item: EncodedItem, target_weight: float, source_weight: float) -> list[float]:
        """One weight for each id that the sequence predicts: of the source, if it is read, and of the target."""
        sources = [source_weight] * self._forward.source_size(item)
        end = item.target_ids[len(item.target_ids) - item.is_finished :]
        edits = edit_weights([*item.response_ids, *end], item.target_ids, self._edit_weight)
        return [*sources, *(target_weight * weight for weight in edits)]

    def batches(self, examples: Sequence[MappingExample], max_tokens: int) -> Iterator[list[int]]:
        """Examples of one prompt are in one batch if its computation can be shared; otherwise of similar length."""
        return self._forward.planner.batches([example.item for example in examples], max_tokens)

    def size(self, example: MappingExample) -> int:
        """Number of tokens with a weight in the loss."""
        return sum(weight > 0 for weight in example.weights)

    def tokens(self, example: MappingExample) -> int:
        """Tokens of source and target together."""
        item = example.item
        return len(item.prefix_ids) + len(item.response_ids) + len(item.instruction_ids) + len(item.target_ids)

    def loss(self, examples: Sequence[MappingExample]) -> Tensor:
        """Weighted sum of the negative log-likelihoods of all predicted tokens."""
        weights = torch.tensor([weight for example in examples for weight in example.weights], device=self._device)
        return weighted_nll(self._forward, [example.item for example in examples], weights)
