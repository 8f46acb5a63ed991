"""The plots of ``benchmarks.claims``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.synthetic.statistics import MAIN_POLICY


def plot_gold(tasks: Mapping[str, Any], path: Path) -> None:
    """Gold score of every policy, in and out of distribution; one panel per task."""
    figure, panels = _figure(len(tasks), 4.6, 5.5)
    for axes, (name, splits) in zip(panels, tasks.items(), strict=True):
        names = list(splits["id"]["policies"])[::-1]
        for offset, (split, colour) in zip((0.2, -0.2), (("id", "#b3261e"), ("ood", "#e8a09a")), strict=True):
            policies = splits[split]["policies"]
            values = [policies[n]["gold"] for n in names]
            error = [
                [max(0.0, abs(policies[n]["gold_interval"][side] - policies[n]["gold"])) for n in names]
                for side in (0, 1)
            ]
            positions = [n + offset for n in range(len(names))]
            axes.barh(positions, values, height=0.38, color=colour, xerr=error, ecolor="#555555", label=split)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xlim(0, 1)
        axes.set_title(name, fontsize=10)
        axes.grid(axis="x", alpha=0.25)
    panels[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110)


def plot_curves(curves: Mapping[str, Any], path: Path) -> None:
    """Gold and (rescaled) proxy score against sqrt(KL); one panel per task."""
    figure, panels = _figure(len(curves), 4.6, 4.0)
    colours = {"ppo_scalar": "#5f6368", "ppo_paper": "#1967d2", MAIN_POLICY: "#b3261e"}
    for axes, (name, policies) in zip(panels, curves.items(), strict=True):
        for policy, colour in colours.items():
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
        axes.set_xlabel("sqrt(KL), nats per response", fontsize=8)
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
