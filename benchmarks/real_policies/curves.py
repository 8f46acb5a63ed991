"""Statistics of runs: figures at equal KL, t-intervals over seeds, and which method is better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

from benchmarks.real_policies.metrics import METRICS
from benchmarks.real_policies.plan import MAIN_METHOD, Plan

Curve = Sequence[Mapping[str, Any]]
# 0.975 quantiles of Student's t with 1, 2, ... degrees of freedom
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
# below this KL two policies are too near the start policy to be compared
MIN_KL = 0.02


class Interval(NamedTuple):
    """A mean over seeds and its 95 % t-interval; ``low`` and ``high`` are None if there is one seed."""

    mean: float
    low: float | None
    high: float | None
    seeds: int


def t_interval(values: Sequence[float]) -> Interval:
    """The mean of ``values`` with Student's t-interval. Raises ValueError if there are none or more than 16."""
    count = len(values)
    if not 1 <= count <= len(_T) + 1:
        raise ValueError(f"{count} values; there must be 1 to {len(_T) + 1}")
    mean = sum(values) / count
    if count == 1:
        return Interval(mean, None, None, 1)
    std = math.sqrt(sum((value - mean) ** 2 for value in values) / (count - 1))
    half = _T[count - 2] * std / math.sqrt(count)
    return Interval(mean, mean - half, mean + half, count)


def value_at_kl(curve: Curve, metric: str, nats: float) -> float | None:
    """The figure where the run first reached a KL of ``nats``: linear between the two points of its curve around it.

    None if the run did not reach it, or if the figure is missing there.
    """
    for before, after in pairwise(curve):
        if before["kl"] <= nats <= after["kl"]:
            first, last = before.get(metric), after.get(metric)
            if first is None or last is None:
                return None
            rise = after["kl"] - before["kl"]
            share = (nats - before["kl"]) / rise if rise > 0 else 1.0
            return float(first + share * (last - first))
    return None


def largest_kl(curve: Curve) -> float:
    """The largest KL on a run's curve, in nats."""
    return max(float(point["kl"]) for point in curve)


def task_statistics(methods: Mapping[str, Sequence[Mapping[str, Any]]], metric: str, plan: Plan) -> dict[str, Any]:
    """Tables of one task.

    Args:
        methods: name -> the figures of each seed, in the same order of seeds.
        metric: the figure that decides; less is better.

    Returns:
        ``final``: figures after the last step. ``equal_kl``: figures at each KL of ``plan.kl_grid`` that all seeds of a
        method reached. ``against``: the main method against each other one (``comparison``).
    """
    equal: dict[str, Any] = {}
    for nats in plan.kl_grid:
        for name, runs in methods.items():
            found = {m: [value_at_kl(run["curve"], m, nats) for run in runs] for m in METRICS if m != "kl"}
            intervals = {m: interval for m, values in found.items() if (interval := _interval(values)) is not None}
            if intervals:
                equal.setdefault(f"{nats:g}", {})[name] = intervals
    main = methods.get(MAIN_METHOD)
    others = {} if main is None else {n: runs for n, runs in methods.items() if n not in {MAIN_METHOD, "start"}}
    return {
        "final": {name: _finals(runs) for name, runs in methods.items()},
        "equal_kl": equal,
        "against": {name: comparison(main, runs, metric) for name, runs in others.items() if main is not None},
    }


def comparison(main: Sequence[Mapping[str, Any]], other: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    """The main method against another, seed by seed.

    ``equal_kl``: differences (main less other) of all figures at the largest KL that both runs of a seed reached;
    ``kl``: that KL; ``at_end``: differences after the last step. ``beats_*``: ``answer`` for the deciding figure.
    """
    nats = [min(largest_kl(a["curve"]), largest_kl(b["curve"])) for a, b in zip(main, other, strict=True)]
    at_equal: dict[str, Any] = {}
    at_end: dict[str, Any] = {}
    for name in METRICS:
        pairs = [
            (value_at_kl(a["curve"], name, k), value_at_kl(b["curve"], name, k)) if k >= MIN_KL else (None, None)
            for a, b, k in zip(main, other, nats, strict=True)
        ]
        ends = [(a["final"].get(name), b["final"].get(name)) for a, b in zip(main, other, strict=True)]
        for found, target in ((pairs, at_equal), (ends, at_end)):
            interval = _interval([None if a is None or b is None else a - b for a, b in found])
            if interval is not None:
                target[name] = interval
    return {
        "kl": t_interval(nats),
        "equal_kl": at_equal,
        "at_end": at_end,
        "beats_at_equal_kl": answer(at_equal.get(metric)),
        "beats_at_end": answer(at_end.get(metric)),
    }


def answer(difference: Interval | None) -> str:
    """Whether a difference (main less other, less is better) is below 0: yes, no or undecided, by its interval.

    ``no`` means that the other one is better; ``undecided`` that the interval holds 0, or that there is none.
    """
    if difference is None or difference.low is None or difference.high is None:
        return "undecided"
    if difference.high < 0:
        return "yes"
    return "no" if difference.low > 0 else "undecided"


def _finals(runs: Sequence[Mapping[str, Any]]) -> dict[str, Interval]:
    found = {name: [run["final"].get(name) for run in runs] for name in METRICS}
    return {name: interval for name, values in found.items() if (interval := _interval(values)) is not None}


def _interval(values: Sequence[float | None]) -> Interval | None:
    """None if a seed has no value: intervals over some of the seeds would be biased."""
    present = [value for value in values if value is not None]
    return t_interval(present) if values and len(present) == len(values) else None
