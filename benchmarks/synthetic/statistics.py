"""From answers to figures: scores, rates, win rates with intervals, over-optimisation curves, plots and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.synthetic.gold_scores import Answers
from redline.ppo.report import fit_line

RESAMPLES = 2000
# the claims' own bars, and against whom a policy's win rate is told
AGAINST = ("supervised", "ppo_scalar")
MAIN_POLICY = "ppo_seq2seq"
# nats a response: a policy so far from where it started no longer speaks its language
DIVERGED_KL = 20.0


@lru_cache(maxsize=8)
def resampled(keys: tuple[tuple[str, ...], ...], seed: int = 0) -> tuple[Tensor, ...]:
    """Two-level bootstrap over S seeds of answers to questions ``keys[s]``: weights ``(RESAMPLES, len(keys[s]))``.

    Seeds are drawn with repetition, then questions within each draw, with all their answers: the interval covers
    another training run as well as other questions. Kept, for every policy of a world answers the same questions.
    """
    generator = torch.Generator().manual_seed(seed)
    seeds = len(keys)
    drawn = torch.randint(seeds, (RESAMPLES, seeds), generator=generator)
    places = [{key: n for n, key in enumerate(dict.fromkeys(of))} for of in keys]
    weights = [torch.zeros(RESAMPLES, len(of), dtype=torch.float64) for of in places]
    for column in range(seeds):
        for s, n in enumerate(map(len, places)):
            rows = torch.nonzero(drawn[:, column] == s).squeeze(1)
            if len(rows) == 0:
                continue
            picked = torch.randint(n, (len(rows), n), generator=generator)
            ones = torch.ones_like(picked, dtype=torch.float64)
            weights[s][rows] += torch.zeros(len(rows), n, dtype=torch.float64).scatter_add_(1, picked, ones)
    return tuple(w[:, [place[key] for key in of]] for w, place, of in zip(weights, places, keys, strict=True))


def mean_with_interval(
    values: Sequence[Tensor], counted: Sequence[Tensor], keys: Sequence[Sequence[str]]
) -> dict[str, float] | None:
    """Mean of ``values[s]`` where ``counted[s]`` is 1, and its 95 % interval over questions ``keys[s]``.

    None where nothing counts.
    """
    weights = resampled(tuple(map(tuple, keys)))
    top = sum((w @ (v * c) for w, v, c in zip(weights, values, counted, strict=True)), torch.zeros(RESAMPLES))
    bottom = sum((w @ c for w, c in zip(weights, counted, strict=True)), torch.zeros(RESAMPLES))
    total = float(sum(c.sum() for c in counted))
    if total == 0:
        return None
    means = (top / bottom)[bottom > 0]
    mean = float(sum((v * c).sum() for v, c in zip(values, counted, strict=True))) / total
    low, high = (float(means.quantile(q)) for q in (0.025, 0.975))
    return {"mean": mean, "low": low, "high": high}


def _tensor(values: Sequence[float | bool]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def win_rate(mine: Sequence[Answers], theirs: Sequence[Answers]) -> dict[str, float | None]:
    """Share of the decided questions that the first wins by gold; ``ties`` is the share of all that is undecided."""
    pairs = [(_tensor(a.gold), _tensor(b.gold)) for a, b in zip(mine, theirs, strict=True)]
    decided = [(a != b).double() for a, b in pairs]
    rate = mean_with_interval([(a > b).double() for a, b in pairs], decided, [a.keys for a in mine])
    total = sum(len(d) for d in decided)
    ties = 1 - float(sum(d.sum() for d in decided)) / total
    return {**(rate or {"mean": None, "low": None, "high": None}), "ties": ties}


def figures(answers: Sequence[Answers]) -> dict[str, Any]:
    """What there is to say of one policy on one split, over the seeds in ``answers``."""
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
    """``policies`` and ``win_rates`` pooled over seeds, and the same seed by seed."""

    def of(chosen: Mapping[str, Sequence[Answers]]) -> dict[str, Any]:
        pairs = [(a, b) for a in chosen for b in AGAINST if a != b and b in chosen]
        pairs += [(MAIN_POLICY, b) for b in chosen if MAIN_POLICY in chosen and b != MAIN_POLICY and b not in AGAINST]
        return {
            "policies": {name: figures(answers) for name, answers in chosen.items()},
            "win_rates": {f"{a}_vs_{b}": win_rate(chosen[a], chosen[b]) for a, b in pairs},
        }

    single = {str(seed): of({p: [a[n]] for p, a in by_policy.items()}) for n, seed in enumerate(seeds)}
    return {**of(by_policy), "seeds": single}


def curve_figures(curves: Sequence[Sequence[Mapping[str, float]]]) -> dict[str, Any]:
    """Gold and proxy against sqrt(KL) over training: the mean curve of the seeds, and a line through all points.

    arXiv 2204.05862 finds reward to be roughly linear in sqrt(KL); where gold bends away from the proxy, the policy
    is over-optimising.
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


def table(title: str, figures_of: Mapping[str, Any]) -> str:
    """A split's figures in Markdown."""
    lines = [
        f"**{title}**",
        "",
        "| policy | gold | wins against supervised | wins against ppo_scalar | ties | benign refusals "
        "| harmful answered | tokens | ideal | KL |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, f in figures_of["policies"].items():
        low, high = f["gold_interval"]
        shown = f"{name} (diverged)" if f["kl"] is not None and f["kl"] > DIVERGED_KL else name
        supervised, scalar = (figures_of["win_rates"].get(f"{name}_vs_{other}") for other in AGAINST)
        lines.append(
            f"| {shown} | {f['gold']:.3f} [{low:.3f}, {high:.3f}] | {_rate(supervised)} | {_rate(scalar)} "
            f"| {'-' if scalar is None else format(scalar['ties'], '.0%')} | {f['benign_refusal_rate']:.1%} "
            f"| {f['harmful_compliance_rate']:.1%} | {f['mean_tokens']:.1f} | {f['ideal_tokens']:.1f} "
            f"| {'-' if f['kl'] is None else format(f['kl'], '.2f')} |"
        )
    return "\n".join(lines)


def head_to_head(worlds: Mapping[str, Any]) -> str:
    """PPO with the default seq2seq scorer against PPO with Bradley-Terry, plain and with strays; a row a world."""
    lines = [
        f"**{MAIN_POLICY} against Bradley-Terry**",
        "",
        "| task | against | wins, in distribution | ties | wins, out of distribution | ties |",
        "|---|---|---|---|---|---|",
    ]
    for world, splits in worlds.items():
        for other in ("ppo_scalar", "ppo_scalar_mismatch"):
            rates = [splits[split]["win_rates"].get(f"{MAIN_POLICY}_vs_{other}") for split in ("id", "ood")]
            if any(rates):
                told = [f"{_rate(rate)} | {'-' if rate is None else format(rate['ties'], '.0%')}" for rate in rates]
                lines.append(f"| {world} | {other} | {' | '.join(told)} |")
    return "\n".join(lines)


def accuracy_table(worlds: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    """Held-out pair accuracy of every fitted reward model, a column a world: mean, least and most of the seeds."""
    names = list(dict.fromkeys(name for told in worlds.values() for name in told))
    lines = [
        "**held-out pairs ranked right**",
        "",
        f"| model | {' | '.join(worlds)} |",
        "|---" * (1 + len(worlds)) + "|",
    ]
    for name in names:
        cells = [
            "{mean:.1%} ({min:.0%} to {max:.0%})".format(**told[name]) if name in told else "-"
            for told in worlds.values()
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _rate(rate: Mapping[str, float] | None) -> str:
    if rate is None or rate["mean"] is None:
        return "-"
    return f"{rate['mean']:.1%} [{rate['low']:.1%}, {rate['high']:.1%}]"


def plot_gold(worlds: Mapping[str, Any], path: Path) -> None:
    """Gold of every policy, in and out of distribution, a panel a world."""
    figure, panels = _figure(len(worlds), 4.6, 5.5)
    for axes, (name, splits) in zip(panels, worlds.items(), strict=True):
        names = list(splits["id"]["policies"])[::-1]
        for offset, (split, colour) in zip((0.2, -0.2), (("id", "#b3261e"), ("ood", "#e8a09a")), strict=True):
            policies = splits[split]["policies"]
            values = [policies[n]["gold"] for n in names]
            error = [
                [max(0.0, abs(policies[n]["gold_interval"][side] - policies[n]["gold"])) for n in names]
                for side in (0, 1)
            ]
            places = [n + offset for n in range(len(names))]
            axes.barh(places, values, height=0.38, color=colour, xerr=error, ecolor="#555555", label=split)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def plot_curves(curves: Mapping[str, Any], path: Path) -> None:
    """Gold and (rescaled) proxy against sqrt(KL), a panel a world."""
    figure, panels = _figure(len(curves), 4.6, 4.0)
    shown = {"ppo_scalar": "#5f6368", "ppo_paper": "#1967d2", MAIN_POLICY: "#b3261e"}
    for axes, (name, policies) in zip(panels, curves.items(), strict=True):
        for policy, colour in shown.items():
            if policy not in policies:
                continue
            rows = policies[policy]["mean_curve"]
            root = [max(0.0, row["kl"]) ** 0.5 for row in rows]
            proxies = [row["proxy"] for row in rows]
            low, span = min(proxies), (max(proxies) - min(proxies)) or 1.0
            axes.plot(root, [row["gold"] for row in rows], color=colour, label=f"{policy}: gold")
            scaled = [(p - low) / span for p in proxies]
            axes.plot(root, scaled, color=colour, linestyle=":", label=f"{policy}: proxy, scaled")
        axes.set_title(name, fontsize=10)
        axes.set_xlabel("sqrt(KL), nats a response", fontsize=8)
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.25)
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=110)


def _figure(count: int, width: float, height: float) -> tuple[Any, list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * max(1, count), height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, [figure.add_subplot(1, max(1, count), n + 1) for n in range(max(1, count))]
