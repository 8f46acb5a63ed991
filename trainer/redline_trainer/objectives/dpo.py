"""The objective of direct preference optimisation (DPO, arXiv 2305.18290).

``-log sigmoid(beta (delta_w - delta_l))``, mean over pairs, with ``delta = log pi(y | x) - log pi_ref(y | x)``, summed
over the tokens of a response. The reference is a frozen copy of the initial policy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.encoding.items import EncodedItem
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.probes import without_dropout
from redline_model.inference.target_logits import CausalTargets, direct_sequence, response_only
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.base import Objective
from redline_trainer.objectives.target_loss import target_nll


class DPOObjective(Objective[EncodedPair]):
    """See the module's docstring.

    Args:
        model: the transformers model that is trained; adapters may be injected into it.
        beta: scale of the log-ratios, above 0. A larger value keeps the policy closer to the reference.
        reference: a frozen copy of the initial ``model``; None with ``adapted``.
        adapted: the PEFT model around ``model``, which is the reference if its adapter is disabled.
    """

    def __init__(self, model: Any, beta: float, *, reference: Any = None, adapted: Any = None) -> None:
        self._model = model
        self._forward = CausalTargets.probed(model)
        self._frozen = self._forward if reference is None else CausalTargets.probed(reference)
        self._adapted = adapted
        self._beta = beta

    def examples(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself. Both sides are in one batch."""
        return [pair]

    def batches(self, examples: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
        """Pairs of one prompt are in one batch if its computation can be shared; otherwise pairs of similar length."""
        causal = self._forward.forward
        if causal is None or not causal.is_packed:
            return pack_by_length(
                examples, lambda example: 2 * max(map(_length, (example.chosen, example.rejected))), max_tokens
            )
        pairs = []
        for example in examples:
            chosen, rejected = (direct_sequence(side) for side in (example.chosen, example.rejected))
            pairs.append(PrefixedSequence(chosen.prefix, [*chosen.suffix, *rejected.suffix]))
        return causal.batches(pairs, max_tokens)

    def size(self, example: EncodedPair) -> int:
        """1: an example is one comparison."""
        return 1

    def tokens(self, example: EncodedPair) -> int:
        """Tokens of both sides. Passes of the reference are not counted."""
        return _length(example.chosen) + _length(example.rejected)

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        sides = [
            response_only(side)
            for side in [example.chosen for example in examples] + [example.rejected for example in examples]
        ]
        with torch.no_grad(), self._as_reference():
            reference = _sequence_logprobs(self._frozen, sides)
        delta = _sequence_logprobs(self._forward, sides) - reference
        chosen, rejected = delta.chunk(2)
        return -F.logsigmoid(self._beta * (chosen - rejected)).sum()

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        if self._adapted is None:
            yield
            return
        with self._adapted.disable_adapter(), without_dropout(self._model):
            yield


def _length(side: EncodedItem) -> int:
    return len(side.prefix_ids) + len(side.target_ids)


def _sequence_logprobs(forward: CausalTargets, sides: Sequence[EncodedItem]) -> Tensor:
    """``log pi(y | x)`` of each side in nats, ``(B,)``."""
    parts = torch.split(target_nll(forward, sides), [len(side.target_ids) for side in sides])
    return -torch.stack([part.sum() for part in parts])
