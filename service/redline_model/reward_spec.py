"""Reward specifications: an extraction mode and an aggregate, with the bundle's defaults filled in."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from redline_model.errors import UnsupportedError
from redline_model.options import AGGREGATES, CORRECTION_MODES, MODES, Aggregate, Extraction, Mode


class HasModes(Protocol):
    """What a scorer says about its rewards. See ``redline_model.scorer.Scorer``."""

    kind: str
    modes: tuple[Mode, ...]
    extraction: Extraction


class RewardSpec(NamedTuple):
    """A choice of extraction mode (None: the model has no modes) and aggregate.

    ``score_mode``: the mode whose rewards are aggregated to the score; None for ``mode``.
    """

    mode: Mode | None
    aggregate: Aggregate
    score_mode: Mode | None = None

    @property
    def mode_of_score(self) -> Mode | None:
        """The mode of the score, filled in: ``mode`` if there is no ``score_mode``."""
        return self.score_mode or self.mode

    @property
    def needs_correction(self) -> bool:
        """Whether the rewards or the score depend on the model's correction of the response."""
        return self.mode in CORRECTION_MODES or self.score_mode in CORRECTION_MODES


def choose_aggregate(requested: str | None, default: Aggregate) -> Aggregate:
    """``requested`` as an aggregate, ``default`` if None. Raises UnsupportedError, which lists the aggregates."""
    if requested is None:
        return default
    for known in AGGREGATES:
        if known == requested:
            return known
    raise UnsupportedError(f"unknown aggregate {requested!r}; this model offers {', '.join(AGGREGATES)}")


def choose_mode(requested: str | None, default: Mode, offered: tuple[Mode, ...] = MODES) -> Mode:
    """``requested`` as a mode, ``default`` if None. Raises UnsupportedError, which lists the modes."""
    name = default if requested is None else requested
    for known in offered:
        if known == name:
            return known
    raise UnsupportedError(f"unknown extraction mode {name!r}; this model offers {', '.join(offered)}")


def reward_spec(
    scorer: HasModes, mode: str | None = None, aggregate: str | None = None, score_mode: str | None = None
) -> RewardSpec:
    """The specification that a caller requests, with the bundle's defaults filled in. Raises UnsupportedError.

    If the caller names a ``mode`` and no ``score_mode``, the score is of the same mode.
    """
    defaults = scorer.extraction
    chosen = choose_aggregate(aggregate, defaults.aggregate)
    if scorer.modes:
        rewards_mode = choose_mode(mode, defaults.mode, scorer.modes)
        default_score_mode = rewards_mode if mode is not None else defaults.score_mode or rewards_mode
        scored = choose_mode(score_mode, default_score_mode, scorer.modes)
        return RewardSpec(rewards_mode, chosen, None if scored == rewards_mode else scored)
    if mode is not None or score_mode is not None:
        raise UnsupportedError(f"a {scorer.kind} model has no extraction modes; leave 'mode' out")
    return RewardSpec(None, chosen)


def spec_key(scorer: HasModes, spec: RewardSpec) -> str:
    """``mode/aggregate`` of the score, the key of calibrations and accuracies; ``kind/aggregate`` without modes."""
    return f"{spec.mode_of_score or scorer.kind}/{spec.aggregate}"


def all_reward_specs(scorer: HasModes, *, with_corrections: bool = False) -> list[RewardSpec]:
    """Every specification that this scorer offers, its default first.

    ``with_corrections``: also those that need corrections; otherwise only if the default needs one.
    """
    default = reward_spec(scorer)
    rest = [RewardSpec(mode, aggregate) for mode in scorer.modes or (None,) for aggregate in AGGREGATES]
    if not with_corrections and not default.needs_correction:
        rest = [spec for spec in rest if not spec.needs_correction]
    return [default, *(spec for spec in rest if spec != default)]
