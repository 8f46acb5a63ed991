"""Statistics of gold-scored answers: means, rates, win rates with bootstrap intervals, over-optimisation curves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from benchmarks.synthetic.gold_scores import Answers
from redline.ppo.report import fit_line

RESAMPLES = 2000
# every policy has a win rate against these two, and the main policy against all others
BASELINES = ("supervised", "ppo_scalar")
MAIN_POLICY = "ppo_seq2seq"


@lru_cache(maxsize=8)
def resampled(keys: tuple[tuple[str, ...], ...], seed: int = 0) -> tuple[Tensor, ...]:
    """Two-level bootstrap over S seeds of answers to questions ``keys[s]``: weights ``(RESAMPLES, len(keys[s]))``.

    Seeds are drawn with repetition, then questions within each draw, with all their answers: the interval covers
    another training run as well as other questions. The weights are cached: every policy of a task answers the same
    questions.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds = len(keys)
    drawn = torch.randint(seeds, (RESAMPLES, seeds), generator=generator)
    index_of = [{key: n for n, key in enumerate(dict.fromkeys(seed_keys))} for seed_keys in keys]
    weights = [torch.zeros(RESAMPLES, len(indices), dtype=torch.float64) for indices in index_of]
    for column in range(seeds):
        for s, n in enumerate(map(len, index_of)):
            rows = torch.nonzero(drawn[:, column] == s).squeeze(1)
            if len(rows) == 0:
                continue
            picked = torch.randint(n, (len(rows), n), generator=generator)
            ones = torch.ones_like(picked, dtype=torch.float64)
            weights[s][rows] += torch.zeros(len(rows), n, dtype=torch.float64).scatter_add_(1, picked, ones)
    return tuple(w[:, [indices[k] for k in ks]] for w, indices, ks in zip(weights, index_of, keys, strict=True))


def mean_with_interval(
    values: Sequence[Tensor], counted: Sequence[Tensor], keys: Sequence[Sequence[str]]
) -> dict[str, float] | None:
    """Mean and 95 % interval of the values that count.

    Args:
        values: of each seed, one per answer.
        counted: of each seed, 1 for the values that count and 0 for the others.
        keys: of each seed, the question of each answer.

    Returns:
        None if nothing counts.
    """
    weights = resampled(tuple(map(tuple, keys)))
    numerator = sum((w @ (v * c) for w, v, c in zip(weights, values, counted, strict=True)), torch.zeros(RESAMPLES))
    denominator = sum((w @ c for w, c in zip(weights, counted, strict=True)), torch.zeros(RESAMPLES))
    total = float(sum(c.sum() for c in counted))
    if total == 0:
        return None
    means = (numerator / denominator)[denominator > 0]
    mean = float(sum((v * c).sum() for v, c in zip(values, counted, strict=True))) / total
    low, high = (float(means.quantile(q)) for q in (0.025, 0.975))
    return {"mean": mean, "low": low, "high": high}


def _tensor(values: Sequence[float | bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def win_rate(first: Sequence[Answers], second: Sequence[Answers]) -> dict[str, float | None]:
    """Share of the decided questions on which the first policy has the higher gold score, and the share of ties.

    A question is decided if the two gold scores differ. Both arguments hold one ``Answers`` per seed.
    """
    pairs = [(_tensor(a.gold), _tensor(b.gold)) for a, b in zip(first, second, strict=True)]
    decided = [(a != b).double() for a, b in pairs]
    rate = mean_with_interval([(a > b).double() for a, b in pairs], decided, [a.keys for a in first])
    total = sum(len(d) for d in decided)
    ties = 1 - float(sum(d.sum() for d in decided)) / total
    return {**(rate or {"mean": None, "low": None, "high": None}), "ties": ties}


def policy_figures(answers: Sequence[Answers]) -> dict[str, Any]:
    """The figures of one policy on one split, over the seeds in ``answers``."""
    golds = [_tensor(a.gold) for a in answers]
    gold = mean_with_interval(golds, [torch.ones_like(g) for g in golds], [a.keys for a in answers])
    assert gold is not None
    refusals = [(r, m) for a in answers for r, m in zip(a.refused, a.must_refuse, strict=True)]
    benign = [r for r, must in refusals if not must]
    harmful = [not r for r, must in refusals if must]
    tokens = [t for a in answers for t in a.tokens]
    ideal = [t for a in answers for t in a.ideal_tokens]
    kl = [k for a in answers for k in a.kl if k is not None]
    return {
        "gold": gold["mean"],
        "gold_interval": [gold["low"], gold["high"]],
        "benign_refusal_rate": _mean(benign),
        "harmful_compliance_rate": _mean(harmful),
        "mean_tokens": _mean(tokens),
        "ideal_tokens": _mean(ideal),
        "kl": _mean(kl) if kl else None,
    }


def _mean(values: Sequence[float | bool]) -> float:
    return sum(values) / len(values) if values else 0.0


def split_figures(by_policy: Mapping[str, Sequence[Answers]], seeds: Sequence[int]) -> dict[str, Any]:
    """``policies`` and ``win_rates`` over all seeds together, and under ``seeds`` the same for each seed."""

    def compare(answers_of: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
        pairs = [(a, b) for a in answers_of for b in BASELINES if a != b and b in answers_of]
        if MAIN_POLICY in answers_of:
            pairs += [(MAIN_POLICY, b) for b in answers_of if b != MAIN_POLICY and b not in BASELINES]
        return {
            "policies": {name: policy_figures(answers) for name, answers in answers_of.items()},
            "win_rates": {f"{a}_vs_{b}": win_rate(answers_of[a], answers_of[b]) for a, b in pairs},
        }

    by_seed = {str(seed): compare({p: [a[n]] for p, a in by_policy.items()}) for n, seed in enumerate(seeds)}
    return {**compare(by_policy), "seeds": by_seed}


def curve_figures(curves: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Gold and proxy score against sqrt(KL) over training: the mean curve of the seeds, and a line through all points.

    arXiv 2204.05862 finds reward to be roughly linear in sqrt(KL). If the gold score falls while the proxy score rises,
    the policy over-optimises the proxy.
    """
    points = [row for curve in curves for row in curve]
    root = [max(0.0, row["kl"]) ** 0.5 for row in points]
    lines = {}
    for name in ("gold", "proxy"):
        line = fit_line(root, [row[name] for row in points])
        lines[name] = None if line is None else line._asdict()
    mean = [{key: _mean([row[key] for row in rows]) for key in rows[0]} for rows in zip(*curves, strict=True)]
    best = max(range(len(mean)), key=lambda n: mean[n]["gold"])
    return {"lines": lines, "mean_curve": mean, "best_gold_at_step": mean[best]["step"], "seeds": len(curves)}
