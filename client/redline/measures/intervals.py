"""Bootstrap intervals of means and of other statistics; whole groups (prompts) are resampled; pure."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

RESAMPLES = 1000
LEVEL = 0.95


class Interval(NamedTuple):
    """An estimate, its bootstrap interval (``LEVEL``), and the numbers of values and of groups."""

    mean: float
    low: float
    high: float
    values: int
    groups: int

    @property
    def is_above_zero(self) -> bool:
        """Whether the whole interval is above zero."""
        return self.low > 0


def mean_interval(
    values: Sequence[float], groups: Sequence[str], *, resamples: int = RESAMPLES, seed: int = 0
) -> Interval:
    """The mean of ``values`` and its percentile interval; groups are drawn with replacement, with all their values.

    Args:
        values, groups: one entry per response, equally many; ``groups`` are equal for responses to one prompt.

    Raises:
        ValueError: there are no values, or the lengths differ.
    """
    sums: dict[str, tuple[float, int]] = {}
    for value, group in zip(values, groups, strict=True):
        total, count = sums.get(group, (0.0, 0))
        sums[group] = total + value, count + 1
    if not sums:
        raise ValueError("no values")
    parts = list(sums.values())
    generator = random.Random(seed)
    means = []
    for _ in range(resamples):
        drawn = generator.choices(parts, k=len(parts))
        means.append(math.fsum(total for total, _ in drawn) / sum(count for _, count in drawn))
    low, high = percentiles(means)
    return Interval(math.fsum(values) / len(values), low, high, len(values), len(parts))


def paired_difference(
    first: Mapping[str, float], second: Mapping[str, float], groups: Mapping[str, str], *, seed: int = 0
) -> Interval:
    """The mean of ``first - second`` over the keys that both have, and its interval as in ``mean_interval``.

    Args:
        first, second: values of two scorers, by response.
        groups: the group of every response.

    Raises:
        ValueError: no key is in both.
    """
    shared = [key for key in first if key in second]
    return mean_interval([first[key] - second[key] for key in shared], [groups[key] for key in shared], seed=seed)


def statistic_interval(
    statistic: Callable[[Sequence[float]], float | None], groups: Sequence[str], *, resamples: int, seed: int = 0
) -> Interval:
    """A statistic of weighted responses, and its percentile interval; resamples in which it is None are left out.

    Args:
        statistic: function of the weights (how often each response counts), one per response.
        groups: one entry per response.

    Raises:
        ValueError: the statistic is None for the responses themselves.
    """
    estimate = statistic([1.0] * len(groups))
    if estimate is None:
        raise ValueError("the statistic is not defined for these responses")
    drawn = [value for value in map(statistic, _weights(groups, resamples, seed)) if value is not None]
    low, high = percentiles(drawn)
    return Interval(estimate, low, high, len(groups), len(set(groups)))


def _weights(groups: Sequence[str], resamples: int, seed: int) -> Iterator[list[float]]:
    names = list(dict.fromkeys(groups))
    generator = random.Random(seed)
    for _ in range(resamples):
        counts = dict.fromkeys(names, 0.0)
        for name in generator.choices(names, k=len(names)):
            counts[name] += 1.0
        yield [counts[group] for group in groups]


def percentiles(values: Iterable[float]) -> tuple[float, float]:
    """The lower and upper percentile of ``LEVEL``, by linear interpolation. Raises ValueError without values."""
    ordered = sorted(values)
    if not ordered:
        raise ValueError("no values")
    return _quantile(ordered, (1 - LEVEL) / 2), _quantile(ordered, (1 + LEVEL) / 2)


def _quantile(ordered: Sequence[float], share: float) -> float:
    position = share * (len(ordered) - 1)
    lower = math.floor(position)
    upper = min(lower + 1, len(ordered) - 1)
    return ordered[lower] + (ordered[upper] - ordered[lower]) * (position - lower)
