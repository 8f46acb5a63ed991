"""Several reward models as one (arXiv 2401.16635 and related): mean, worst case, or mean less disagreement.

With member scores ``s_1 ... s_k``:

- ``mean``: their mean, and the mean of the members' token rewards;
- ``min``: the lowest, and the token rewards of the member that gave it (the first of equals);
- ``mean_minus_variance``: ``mean - lambda var``, var the population variance of the k scores. Token rewards are the
  members' mean with the penalty on the last token, so that their aggregate is the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from redline_model.encoding.encoder import EncodedItem, Encoder
from redline_model.encoding.tokenizer_identity import tokenizer_fingerprint
from redline_model.errors import UnsupportedError
from redline_model.extraction import move_score
from redline_model.inference.planner import Planner
from redline_model.inference.prefix_cache import Prefix
from redline_model.kinds import BundleReader, KindSpec
from redline_model.options import MODES, Aggregate, EnsembleOptions, Extraction, Mode
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, ScoreOnly, Scorer

Outputs = tuple[Any, ...]  # the members' forward outputs for one item


def member_folder(number: int) -> str:
    """The sub-folder of a bundle that holds a member, counted from 0."""
    return f"members/{number}"


class EnsemblePlanner:
    """Plans passes for the member whose passes suit all others. See ``Planner``.

    Packed passes need not suit a model that pads; padded ones suit every model.
    """

    def __init__(self, planners: Sequence[Planner]) -> None:
        self._planners = planners
        self._leader = min(planners, key=lambda planner: planner.shares_prefixes)
        self.prefix_caches = tuple(cache for planner in planners for cache in planner.prefix_caches)
        self.shares_prefixes = self._leader.shares_prefixes

    def length(self, item: EncodedItem) -> int:
        """Tokens read by the member that reads most of this item."""
        return max(planner.length(item) for planner in self._planners)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """See ``Planner``."""
        return self._leader.prefix(item)

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """See ``Planner``; of one member, for the members' passes follow each other."""
        return self._leader.cost(item, present)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Planner``."""
        return self._leader.batches(items, max_tokens)


class EnsembleScorer(ScoreOnly[Outputs]):
    """Scores every item with every member. See ``redline_model.scorer.Scorer``.

    Args:
        members: scorers that lay items out alike; all are asked for the same reward specification.
        extraction: the default specification; magnitudes of extraction modes are each member's own.

    Raises:
        UnsupportedError: the members differ in number, tokenizer, template or arrangement, or share no mode.
    """

    kind = "ensemble"

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
        self.planner: Planner = EnsemblePlanner([member.planner for member in members])

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Outputs]]:
        """See ``Scorer``; every member's pass is started before any is waited for."""
        waiting = [member.start_forward(items) for member in self.members]
        return lambda: list(zip(*(wait() for wait in waiting), strict=True))

    def to_rewards(self, output: Outputs, spec: RewardSpec) -> ScoredResponse:
        """The members' scored responses as one. Raises NonFiniteError if any member does."""
        by_member = [member.to_rewards(part, spec) for member, part in zip(self.members, output, strict=True)]
        return combined(by_member, self.options, spec.aggregate)


def combined(by_member: Sequence[ScoredResponse], options: EnsembleOptions, aggregate: Aggregate) -> ScoredResponse:
    """The members' scored responses to one item as one, see the module. Only ``min`` gives ``diverged_at``."""
    scores = torch.tensor([scored.score for scored in by_member], dtype=torch.float64)
    if options.combine == "min":
        return by_member[int(scores.argmin())]
    rewards = torch.tensor([scored.rewards for scored in by_member], dtype=torch.float64).mean(0).tolist()
    mean = ScoredResponse(float(scores.mean()), rewards, None)
    if options.combine == "mean":
        return mean
    penalty = options.variance_weight * float(scores.var(correction=0))
    return ScoredResponse(mean.score - penalty, move_score(rewards, -penalty, aggregate), None)


def common_encoder(encoders: Sequence[Encoder]) -> Encoder:
    """The encoder of items that all of ``encoders`` lay out alike, within the smallest of their limits.

    Raises:
        UnsupportedError: they differ in tokenizer, template or arrangement; the message names the members.
    """
    first = encoders[0]
    facts: dict[str, Callable[[Encoder], object]] = {
        "tokenizer": lambda encoder: tokenizer_fingerprint(encoder.tokenizer),
        "template": lambda encoder: (encoder.template, getattr(encoder.tokenizer, "chat_template", None)),
        "arrangement": lambda encoder: encoder.arrangement,
    }
    for name, fact_of in facts.items():
        for number, encoder in enumerate(encoders):
            if fact_of(encoder) != fact_of(first):
                raise UnsupportedError(
                    f"members 0 and {number} of the ensemble differ in their {name}; all must share one"
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


def _load(reader: BundleReader) -> EnsembleScorer:
    options = reader.manifest.ensemble
    assert options is not None
    members = [reader.inner_bundle(member_folder(number)) for number in range(options.members)]
    return EnsembleScorer(members, options, reader.manifest.extraction)


KIND = KindSpec(
    description="Several reward models as one (arXiv 2401.16635), each a bundle of its own in `members/`.",
    load=_load,
    contents="Each folder in `members/` is a complete bundle;",
    mode="as its members'",
)
