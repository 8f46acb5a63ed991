"""Several reward models as one (arXiv 2401.16635 and related): mean, worst case, or mean less disagreement.

With member scores ``s_1 ... s_k``:

- ``mean``: their mean, and the mean of the members' token rewards;
- ``min``: the lowest, and the token rewards of that member (the first one if several are equal);
- ``mean_minus_variance``: ``mean - lambda var``, var the population variance of the k scores. Token rewards are the
  members' mean with the penalty on the last token, so that they aggregate to the score.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from redline_model.correction.rewriter import Correction
from redline_model.encoding.encoder import Encoder
from redline_model.encoding.items import EncodedItem
from redline_model.encoding.tokenizer_identity import tokenizer_fingerprint
from redline_model.errors import UnsupportedError
from redline_model.extraction import move_score
from redline_model.inference.planner import Planner
from redline_model.inference.prefix_cache import Prefix
from redline_model.kinds import BundleReader, KindSpec
from redline_model.options import CORRECTION_MODES, MODES, Aggregate, EnsembleOptions, Extraction, Mode
from redline_model.reward_spec import RewardSpec
from redline_model.scorer import ScoredResponse, ScoreOnly, Scorer

Outputs = tuple[Any, ...]  # the members' forward outputs for one item


def member_folder(number: int) -> str:
    """The sub-folder of a bundle with a member, counted from 0."""
    return f"members/{number}"


class EnsemblePlanner:
    """Plans passes that fit all members, by the planner of one member. See ``Planner``.

    A packed pass can be too large for a model that pads; a padded pass fits every model.
    """

    def __init__(self, planners: Sequence[Planner]) -> None:
        self._planners = planners
        self._leader = min(planners, key=lambda planner: planner.shares_prefixes)
        self.prefix_caches = tuple(cache for planner in planners for cache in planner.prefix_caches)
        self.shares_prefixes = self._leader.shares_prefixes

    def length(self, item: EncodedItem) -> int:
        """The largest number of tokens that any member reads for this item."""
        return max(planner.length(item) for planner in self._planners)

    def prefix(self, item: EncodedItem) -> Prefix | None:
        """See ``Planner``."""
        return self._leader.prefix(item)

    def cost(self, item: EncodedItem, present: set[Prefix]) -> int:
        """See ``Planner``; the cost for one member, because the members run one after the other."""
        return self._leader.cost(item, present)

    def batches(self, items: Sequence[EncodedItem], max_tokens: int) -> Iterator[list[int]]:
        """See ``Planner``."""
        return self._leader.batches(items, max_tokens)


class EnsembleScorer(ScoreOnly[Outputs]):
    """Scores every item with every member. See ``redline_model.scorer.Scorer``.

    Args:
        members: scorers that encode items equally; all get the same reward specification.
        extraction: has the default specification; each member keeps its own parameters of extraction modes.

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
        self.modes: tuple[Mode, ...] = tuple(
            m for m in MODES if m not in CORRECTION_MODES and all(m in member.modes for member in members)
        )
        if not self.modes and any(member.modes for member in members):
            raise UnsupportedError("the members of an ensemble have no extraction mode in common")
        self.models = tuple(model for member in members for model in member.models)
        self.model = self.models[0]
        self.planner: Planner = EnsemblePlanner([member.planner for member in members])

    def start_forward(self, items: Sequence[EncodedItem]) -> Callable[[], list[Outputs]]:
        """See ``Scorer``; starts the passes of all members before it waits for the first."""
        pending = [member.start_forward(items) for member in self.members]
        return lambda: list(zip(*(collect() for collect in pending), strict=True))

    def to_rewards(self, output: Outputs, spec: RewardSpec, correction: Correction | None = None) -> ScoredResponse:
        """The members' scored responses combined. Raises NonFiniteError if any member does."""
        by_member = [member.to_rewards(part, spec) for member, part in zip(self.members, output, strict=True)]
        return combine_members(by_member, self.options, spec.aggregate)


def combine_members(
    by_member: Sequence[ScoredResponse], options: EnsembleOptions, aggregate: Aggregate
) -> ScoredResponse:
    """Combine the members' scored responses to one item, see the module. Only ``min`` has ``diverged_at``."""
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
    """One encoder that encodes items like all of ``encoders``, with the smallest of their limits.

    Raises:
        UnsupportedError: they differ in tokenizer, template or arrangement; the message names the members.
    """
    first = encoders[0]
    properties: dict[str, Callable[[Encoder], object]] = {
        "tokenizer": lambda encoder: tokenizer_fingerprint(encoder.tokenizer),
        "template": lambda encoder: (encoder.template, getattr(encoder.tokenizer, "chat_template", None)),
        "arrangement": lambda encoder: encoder.arrangement,
    }
    for name, property_of in properties.items():
        for number, encoder in enumerate(encoders):
            if property_of(encoder) != property_of(first):
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
    options: EnsembleOptions = reader.kind_options
    members = [reader.inner_bundle(member_folder(number)) for number in range(options.members)]
    return EnsembleScorer(members, options, reader.extraction)


KIND = KindSpec(
    description="Several reward models as one (arXiv 2401.16635), each a bundle of its own in `members/`.",
    load=_load,
    contents="Each folder in `members/` is a complete bundle;",
    mode="as its members'",
)
