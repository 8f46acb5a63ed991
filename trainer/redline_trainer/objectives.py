"""What is minimised: pure losses over encoded pairs, summed so that microbatches add up exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from redline_model.scorers.scalar import scalar_rewards
from redline_model.scorers.seq2seq import Seq2SeqForward
from redline_model.template import EncodedItem

U = TypeVar("U")


class EncodedPair(NamedTuple):
    """A pair as ids, and the key that says which pairs share a prompt."""

    chosen: EncodedItem
    rejected: EncodedItem
    prompt_key: str


class Objective(Protocol[U]):
    """A loss over units (training sequences), divided by the sum of their sizes over a whole step."""

    def units(self, pair: EncodedPair) -> list[U]:
        """The training sequences of one pair."""
        ...

    def length(self, unit: U) -> int:
        """Tokens of the longest row of this unit."""
        ...

    def rows(self) -> int:
        """Rows of a batch that one unit takes."""
        ...

    def size(self, unit: U) -> int:
        """What the summed loss is to be divided by."""
        ...

    def tokens(self, unit: U) -> int:
        """Tokens put through the model, for the throughput shown."""
        ...

    def loss(self, units: Sequence[U]) -> Tensor:
        """The summed loss, a scalar."""
        ...


class Mapping(NamedTuple):
    """One training sequence of the seq2seq objective."""

    item: EncodedItem
    weight: float


def correction_of(pair: EncodedPair) -> EncodedItem:
    """The rejected response as source, the chosen one as target."""
    return replace(pair.rejected, target_ids=pair.chosen.target_ids, offsets=pair.chosen.offsets)


def target_nll(forward: Seq2SeqForward, items: Sequence[EncodedItem]) -> Tensor:
    """``-log pi(target token)`` in nats, ``(N,)``, in the order of the items' targets."""
    return torch.cat([F.cross_entropy(logits.float(), ids, reduction="none") for logits, ids in forward(items)])


class Seq2SeqObjective:
    """``L = -E[log pi(y_w|x, y_l) + w_id log pi(y_w|x, y_w)]`` (arXiv 2409.00162), mean over target tokens.

    Args:
        identity_weight: ``w_id``; 0 leaves the identity mapping out.
        correction_weight: 1, or 0 to leave the correction mapping out.
    """

    def __init__(self, model: Any, identity_weight: float = 1.0, correction_weight: float = 1.0) -> None:
        self._forward = Seq2SeqForward(model)
        self._identity_weight = identity_weight
        self._correction_weight = correction_weight

    def units(self, pair: EncodedPair) -> list[Mapping]:
        """The correction and the identity mapping."""
        both = (
            Mapping(correction_of(pair), self._correction_weight),
            Mapping(pair.chosen, self._identity_weight),
        )
        return [mapping for mapping in both if mapping.weight > 0]

    def length(self, unit: Mapping) -> int:
        """Source and target together."""
        item = unit.item
        return len(item.prefix_ids) + len(item.response_ids) + len(item.request_ids) + len(item.target_ids)

    def rows(self) -> int:
        """One sequence."""
        return 1

    def size(self, unit: Mapping) -> int:
        """Target tokens."""
        return len(unit.item.target_ids)

    def tokens(self, unit: Mapping) -> int:
        """Source and target together."""
        return self.length(unit)

    def loss(self, units: Sequence[Mapping]) -> Tensor:
        """Weighted sum of target tokens' negative log-likelihoods."""
        nll = target_nll(self._forward, [unit.item for unit in units])
        sizes = torch.tensor([self.size(unit) for unit in units], device=nll.device)
        weights = torch.tensor([unit.weight for unit in units], device=nll.device)
        return (nll * weights.repeat_interleave(sizes)).sum()


class ScalarObjective:
    """Bradley-Terry: ``-log sigmoid(r_w - r_l)`` (arXiv 2009.01325), mean over pairs."""

    def __init__(self, model: Any) -> None:
        self._model = model

    def units(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself: both sides stand in one batch."""
        return [pair]

    def length(self, unit: EncodedPair) -> int:
        """The longer side."""
        return max(len(side.prefix_ids) + len(side.target_ids) for side in (unit.chosen, unit.rejected))

    def rows(self) -> int:
        """Both sides."""
        return 2

    def size(self, unit: EncodedPair) -> int:
        """One comparison."""
        return 1

    def tokens(self, unit: EncodedPair) -> int:
        """Both sides."""
        return sum(len(side.prefix_ids) + len(side.target_ids) for side in (unit.chosen, unit.rejected))

    def loss(self, units: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        rewards = scalar_rewards(self._model, [u.chosen for u in units] + [u.rejected for u in units])
        chosen, rejected = rewards.chunk(2)
        return -F.logsigmoid(chosen - rejected).sum()
