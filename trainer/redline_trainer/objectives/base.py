"""What is minimised: pure losses over encoded pairs, summed so that microbatches add up exactly."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.inference.causal_forward import PrefixedSequence
from redline_model.inference.padding import pack_by_length
from redline_model.inference.score_head import ScalarForward
from redline_model.inference.target_logits import probed_targets
from redline_trainer.objectives.label_smoothing import SmoothedLabels
from redline_trainer.objectives.target_loss import weighted_nll

U = TypeVar("U")

_MOST_TRIED = 1000


class EncodedPair(NamedTuple):
    """A pair as ids.

    ``prompt_key``: equal for pairs that share a prompt. ``number``: the pair's index in the list it came from.
    ``mismatched``: the chosen response to another prompt, encoded after this prompt; None if the objective uses none.
    """

    chosen: EncodedItem
    rejected: EncodedItem
    prompt_key: str
    number: int = 0
    mismatched: EncodedItem | None = None


class Objective(Protocol[U]):
    """A loss over units (training sequences), divided by the sum of their sizes over a whole step."""

    def units(self, pair: EncodedPair) -> list[U]:
        """The training sequences of one pair."""
        ...

    def batches(self, units: Sequence[U], max_tokens: int) -> Iterator[list[int]]:
        """Indices of ``units``, forward pass by forward pass, each at most ``max_tokens`` (or one unit)."""
        ...

    def size(self, unit: U) -> int:
        """What the summed loss is to be divided by."""
        ...

    def tokens(self, unit: U) -> int:
        """Tokens of its sequences, for the throughput shown; what they share is counted for each."""
        ...

    def loss(self, units: Sequence[U]) -> Tensor:
        """The summed loss, a scalar."""
        ...

    def parameters(self) -> list[nn.Parameter]:
        """Weights of its own that learn beside the model's and are not served."""
        return []

    def state(self) -> dict[str, Any]:
        """What it has learned, on the CPU: a checkpoint keeps it."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back, in place."""
        return


class Mapping(NamedTuple):
    """One training sequence of the seq2seq objective."""

    item: EncodedItem
    weight: float


def correction_of(pair: EncodedPair) -> EncodedItem:
    """The rejected response as source, the chosen one as target."""
    return _to_chosen(pair.rejected, pair)


def _to_chosen(source: EncodedItem, pair: EncodedPair) -> EncodedItem:
    return replace(source, target_ids=pair.chosen.target_ids, offsets=pair.chosen.offsets)


def mismatch_of(pair: EncodedPair) -> EncodedItem | None:
    """The stray response as source, the chosen one as target; None where there is no stray."""
    return None if pair.mismatched is None else _to_chosen(pair.mismatched, pair)


def with_mismatched_responses(pairs: Sequence[EncodedPair], encoder: Encoder, seed: int) -> list[EncodedPair]:
    """``pairs``, each with the chosen response of a pair drawn among those of other prompts.

    All pairs stand in one random cycle, and each is lent the response of the next one of another prompt that is not
    too long for the model. A pair gets none where there is no other prompt, or where the first thousand that come
    after it are of no use.
    """
    order = list(range(len(pairs)))
    random.Random(f"{seed}/strays").shuffle(order)
    if len({pair.prompt_key for pair in pairs}) < 2:
        return [pair._replace(mismatched=None) for pair in pairs]
    place = {n: at for at, n in enumerate(order)}
    strayed = []
    for n, pair in enumerate(pairs):
        after = (order[(place[n] + ahead) % len(order)] for ahead in range(1, min(len(order), _MOST_TRIED + 1)))
        strays = (_mismatched(pair, pairs[other], encoder) for other in after)
        strayed.append(
            pair._replace(mismatched=next((mismatched for mismatched in strays if mismatched is not None), None))
        )
    return strayed


def _mismatched(pair: EncodedPair, other: EncodedPair, encoder: Encoder) -> EncodedItem | None:
    """The chosen response of ``other`` behind the prompt of ``pair``; None if it is the same prompt or too long."""
    if other.prompt_key == pair.prompt_key:
        return None
    source = other.chosen
    # a rewriting model reads the stray and then writes the chosen response; a judging one reads the stray alone
    target = source if encoder.arrangement == "prompt_response" else pair.chosen
    pieces = (pair.chosen.prefix_ids, source.response_ids, source.instruction_ids, target.target_ids)
    fits = encoder.max_tokens is None or encoder.length(*map(len, pieces)) <= encoder.max_tokens
    return replace(source, prefix_ids=pair.chosen.prefix_ids) if fits else None


class Seq2SeqObjective(Objective[Mapping]):
    """``L = -E[log pi(y_w|x, y_l) + w_id log pi(y_w|x, y_w)]`` (arXiv 2409.00162), mean over target tokens.

    **Ours**, where pairs hold strays: the mismatch mapping ``log pi(y_w|x, y')``, ``y'`` chosen for another prompt.
    Without it the model may decide by the response alone: a refusal, which pairs only ever show as right, is then
    copied for any prompt.

    Args:
        identity_weight: ``w_id``; 0 leaves the identity mapping out.
        correction_weight: 1, or 0 to leave the correction mapping out.
    """

    def __init__(self, model: Any, identity_weight: float = 1.0, correction_weight: float = 1.0) -> None:
        self._forward = probed_targets(model)
        self._device = model.device
        self._identity_weight = identity_weight
        self._correction_weight = correction_weight

    def units(self, pair: EncodedPair) -> list[Mapping]:
        """The correction, the identity and the mismatch mapping."""
        all_of_them = (
            (correction_of(pair), self._correction_weight),
            (pair.chosen, self._identity_weight),
            (mismatch_of(pair), 1.0),
        )
        return [Mapping(item, weight) for item, weight in all_of_them if item is not None and weight > 0]

    def batches(self, units: Sequence[Mapping], max_tokens: int) -> Iterator[list[int]]:
        """Mappings of one prompt together where its computation can be shared, else of like length."""
        return self._forward.planner.batches([unit.item for unit in units], max_tokens)

    def size(self, unit: Mapping) -> int:
        """Target tokens."""
        return len(unit.item.target_ids)

    def tokens(self, unit: Mapping) -> int:
        """Source and target together."""
        item = unit.item
        return len(item.prefix_ids) + len(item.response_ids) + len(item.instruction_ids) + len(item.target_ids)

    def loss(self, units: Sequence[Mapping]) -> Tensor:
        """Weighted sum of target tokens' negative log-likelihoods."""
        device = self._device
        sizes = torch.tensor([self.size(unit) for unit in units], device=device)
        weights = torch.tensor([unit.weight for unit in units], device=device).repeat_interleave(sizes)
        return weighted_nll(self._forward, [unit.item for unit in units], weights)


class ScalarObjective(Objective[EncodedPair]):
    """Bradley-Terry: ``-log sigmoid(r_w - r_l)`` (arXiv 2009.01325), mean over comparisons.

    A pair with a stray is two comparisons: the chosen response is also to beat what was chosen for another prompt.

    ``labels``: soft ones, in place of the certainty that the chosen side wins.
    """

    def __init__(self, model: Any, labels: SmoothedLabels | None = None) -> None:
        self.forward = ScalarForward.probed(model)
        self._labels = labels

    def units(self, pair: EncodedPair) -> list[EncodedPair]:
        """The pair itself, and its chosen side against the stray; both sides stand in one batch."""
        return [pair] if pair.mismatched is None else [pair, pair._replace(rejected=pair.mismatched)]

    def batches(self, units: Sequence[EncodedPair], max_tokens: int) -> Iterator[list[int]]:
        """Pairs of one prompt together where its computation can be shared, else of like length."""
        causal = self.forward.causal
        if not causal.is_packed:
            return pack_by_length(units, lambda u: 2 * max(map(self._length, (u.chosen, u.rejected))), max_tokens)
        # a pair as one branch: both sides of a comparison stand in one pass
        pairs = [
            PrefixedSequence(tuple(u.chosen.prefix_ids), [*u.chosen.target_ids, *u.rejected.target_ids]) for u in units
        ]
        return causal.batches(pairs, max_tokens)

    def _length(self, side: EncodedItem) -> int:
        return len(side.prefix_ids) + len(side.target_ids)

    def size(self, unit: EncodedPair) -> int:
        """One comparison."""
        return 1

    def tokens(self, unit: EncodedPair) -> int:
        """Both sides."""
        return self._length(unit.chosen) + self._length(unit.rejected)

    def loss(self, units: Sequence[EncodedPair]) -> Tensor:
        """Summed over the comparisons."""
        rewards = self.forward([u.chosen for u in units] + [u.rejected for u in units])
        chosen, rejected = rewards.chunk(2)
        return self.ranking(units, chosen - rejected)

    def ranking(self, units: Sequence[EncodedPair], differences: Tensor) -> Tensor:
        """The summed cross-entropy of the comparisons, from ``r_w - r_l`` ``(B,)``."""
        if self._labels is None:
            return -F.logsigmoid(differences).sum()
        return self._labels.loss([unit.number for unit in units], differences)

    def state(self) -> dict[str, Any]:
        """The labels, if they are soft."""
        return {} if self._labels is None else self._labels.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Put ``state`` back, in place."""
        if self._labels is not None:
            self._labels.load_state(state)
