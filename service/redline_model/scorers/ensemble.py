"""Several reward models as one (arXiv 2401.16635 and related): mean, worst case, or mean less disagreement.

With member scores ``s_1 ... s_k``:

- ``mean``: their mean, and the mean of the members' token rewards;
- ``min``: the lowest, and the token rewards of the member that gave it (the first of equals);
- ``mean_minus_variance``: ``mean - lambda var``, var the population variance of the k scores. Token rewards are the
  members' mean with the penalty on the last token, so that their aggregate is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field

from redline_model.bundle.loading import tokenizer_fingerprint
from redline_model.correction.rewriter import Rewriter
from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.errors import UnsupportedError
from redline_model.extraction import MODES, Aggregate, Extraction, Mode, RewardSpec, move_score
from redline_model.inference.prefix_cache import Prefix, PrefixCache
from redline_model.scorer import ScoredResponse, Scorer, unsupported_correction

Combine = Literal["mean", "min", "mean_minus_variance"]
Outputs = tuple[Any, ...]


class EnsembleOptions(BaseModel):
    """How many members there are and how they are combined. ``variance_weight`` is lambda, in 1/score."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    members: int = Field(ge=2)
    combine: Combine = "mean"
    variance_weight: float = Field(default=1.0, ge=0)


class EnsembleScorer:
    """Reads every item with every member. See ``Scorer``.

    Args:
        members: scorers that lay items out alike; each is read with the same reading.
        extraction: the default reading; magnitudes of extraction modes are each member's own.

    Raises:
        UnsupportedError: the members differ in number, tokenizer, template or arrangement, or share no mode.
    """

    kind = "ensemble"
    can_correct = False

    def __init__(self, members: Sequence[Scorer[Any]], options: EnsembleOptions, extraction: Extraction) -> None:
        if len(members) != options.members:
            raise UnsupportedError(f"an ensemble of {options.members} has {len(members)} members")
        self.members = list(members)
        self.options = options
        self.extraction = extraction
        self.encoder = common_encoder([member.encoder for member in members])
        self.modes: tuple[Mode, ...] = tuple(m for m in MODES if all(m in member.modes for member in members))
        if not self.modes and any(member.modes for member in members):
            raise UnsupportedError("the members of an ensemble have no extraction mode in common")
        self.models = tuple(model for member in members for model in member.models)
        self.model = self.models[0]
        # passes are formed for one member: padded ones fit the others' too, ragged ones need not
        self._leader = min(self.members, key=_shares_prompts)

    @property
    def prefix_caches(self) -> tuple[PrefixCache, ...]:
        """See ``Scorer``."""
        return tuple(cache for member in self.members for cache in member.prefix_caches)

    def length(self, item: EncodedItem) -> int:
        """Tokens that the member reading most of this item reads."""
        return max(member.length(item) for member in self.members)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """See ``Scorer``; of the member that passes are formed for."""
        return self._leader.prefix(item)

    def cost(self, item: EncodedItem, beside: set[Prefix]) -> int:
        """See ``Scorer``; of one member, for the passes of the members follow each other."""
        return self._leader.cost(item, beside)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Scorer``."""
        return self._leader.batches(items, max_tokens)

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Outputs]]:
        """See ``Scorer``; every member's pass is begun before any is waited for."""
        collects = [member.start_forward(items) for member in self.members]
        return lambda: list(zip(*(collect() for collect in collects), strict=True))

    def forward(self, items: Sequence[EncodedItem]) -> list[Outputs]:
        """See ``start_forward``."""
        return self.start_forward(items)()

    def to_rewards(self, output: Outputs, spec: RewardSpec) -> ScoredResponse:
        """The members' judgements as one; raises NonFiniteError where any member does."""
        scored_by_member = [member.to_rewards(one, spec) for member, one in zip(self.members, output, strict=True)]
        return combined(scored_by_member, self.options, spec.aggregate)

    def rewriter(self) -> Rewriter[Outputs]:
        """Always raises UnsupportedError: each member would write a correction of its own."""
        raise unsupported_correction(self.kind)


def combined(
    scored_by_member: Sequence[ScoredResponse], options: EnsembleOptions, aggregate: Aggregate
) -> ScoredResponse:
    """The members' judgements of one item as one, see the module. ``diverged_at`` is told by ``min`` alone."""
    scores = torch.tensor([scored.score for scored in scored_by_member], dtype=torch.float64)
    if options.combine == "min":
        return scored_by_member[int(scores.argmin())]
    rewards = torch.tensor([scored.rewards for scored in scored_by_member], dtype=torch.float64).mean(0).tolist()
    mean = ScoredResponse(float(scores.mean()), rewards, None)
    if options.combine == "mean":
        return mean
    penalty = options.variance_weight * float(scores.var(correction=0))
    return ScoredResponse(mean.score - penalty, move_score(rewards, -penalty, aggregate), None)


def common_encoder(encoders: Sequence[Encoder]) -> Encoder:
    """The encoder of items that each of ``encoders`` would lay out alike, within the least of their limits.

    Raises:
        UnsupportedError: they differ in tokenizer, template or arrangement; the message says in which, and who.
    """
    first = encoders[0]
    facts: dict[str, Callable[[Encoder], object]] = {
        "tokenizer": lambda encoder: tokenizer_fingerprint(encoder.tokenizer),
        "template": lambda encoder: (encoder.template, getattr(encoder.tokenizer, "chat_template", None)),
        "arrangement": lambda encoder: encoder.arrangement,
    }
    for what, of in facts.items():
        for number, encoder in enumerate(encoders):
            if of(encoder) != of(first):
                raise UnsupportedError(
                    f"members 0 and {number} of the ensemble differ in their {what}; all must share one"
                )
    limits = [encoder.max_tokens for encoder in encoders if encoder.max_tokens is not None]
    target_limits = [encoder.max_target_tokens for encoder in encoders if encoder.max_target_tokens is not None]
    return type(first)(
        first.tokenizer,
        first.template,
        arrangement=first.arrangement,
        vocab_size=min(encoder.vocab_size for encoder in encoders),
        max_tokens=min(limits, default=None),
        max_target_tokens=min(target_limits, default=None),
    )


def _shares_prompts(member: Scorer[Any]) -> bool:
    """Whether the member's passes are ragged, asked with an item of no consequence."""
    probe = EncodedItem([0, 0], [0], [], [0], [(0, 0)], "")
    return member.prefix(probe) is not None
