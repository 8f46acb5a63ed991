"""Reward specifications: an extraction mode and an aggregate, with the bundle's defaults filled in."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from redline_model.errors import UnsupportedError
from redline_model.options import AGGREGATES, MODES, Aggregate, Extraction, Mode


class HasModes(Protocol):
    """What a scorer says about its rewards. See ``redline_model.scorer.Scorer``."""

    kind: str
    modes: tuple[Mode, ...]
    extraction: Extraction


class RewardSpec(NamedTuple):
    """A choice of extraction mode (None: the model has no modes) and aggregate."""

    mode: Mode | None
    aggregate: Aggregate


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


def reward_spec(scorer: HasModes, mode: str | None = None, aggregate: str | None = None) -> RewardSpec:
    """The specification that a caller requests, with the bundle's defaults filled in. Raises UnsupportedError."""
    chosen = choose_aggregate(aggregate, scorer.extraction.aggregate)
    if scorer.modes:
        return RewardSpec(choose_mode(mode, scorer.extraction.mode, scorer.modes), chosen)
    if mode is not None:
        raise UnsupportedError(f"a {scorer.kind} model has no extraction modes; leave 'mode' out")
    return RewardSpec(None, chosen)


def spec_key(scorer: HasModes, spec: RewardSpec) -> str:
    """``mode/aggregate``, the key of calibrations and accuracies; ``kind/aggregate`` for a kind without modes."""
    return f"{spec.mode or scorer.kind}/{spec.aggregate}"


def all_reward_specs(scorer: HasModes) -> list[RewardSpec]:
    """Every specification that this scorer offers, its default first."""
    default = reward_spec(scorer)
    rest = [RewardSpec(mode, aggregate) for mode in scorer.modes or (None,) for aggregate in AGGREGATES]
    return [default, *(spec for spec in rest if spec != default)]
