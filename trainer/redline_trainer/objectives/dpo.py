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
from redline_model.inference.probes import without_dropout
from redline_model.inference.target_logits import CausalTargets, direct_sequence, response_only
from redline_trainer.encode_pairs import EncodedPair
from redline_trainer.objectives.pairs import PairObjective, both_sides
from redline_trainer.objectives.target_loss import target_nll


class DPOObjective(PairObjective):
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
        super().__init__(self._forward.forward, direct_sequence)
        self._frozen = self._forward if reference is None else CausalTargets.probed(reference)
        self._adapted = adapted
        self._beta = beta

    def loss(self, examples: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        sides = [response_only(side) for side in both_sides(examples)]
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


def _sequence_logprobs(forward: CausalTargets, sides: Sequence[EncodedItem]) -> Tensor:
    """``log pi(y | x)`` of each side in nats, ``(B,)``."""
    parts = torch.split(target_nll(forward, sides), [len(side.target_ids) for side in sides])
    return -torch.stack([part.sum() for part in parts])
