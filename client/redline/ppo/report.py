"""Summary and plots of a PPO run from its metrics."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from redline.files.atomic import atomic_file, write_text
from redline.files.metrics_log import read_metrics

_PANELS = {
    "score": "score",
    "kl": "KL from the reference (nats per response)",
    "entropy": "entropy (nats per token)",
    "response_tokens": "response length (tokens)",
    "clip_fraction": "clipped share",
    "explained_variance": "explained variance",
}


class LinearFit(NamedTuple):
    """``y = intercept + slope x`` by least squares, with its R²."""

    slope: float
    intercept: float
    r_squared: float


def fit_line(x: Sequence[float], y: Sequence[float]) -> LinearFit | None:
    """The least-squares line; None if all x are equal."""
    n = len(x)
    mean_x, mean_y = sum(x) / n, sum(y) / n
    variance = sum((a - mean_x) ** 2 for a in x)
    if variance < 1e-12:
        return None
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / variance
    intercept = mean_y - slope * mean_x
    residual = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return LinearFit(slope, intercept, 1 - residual / total if total > 1e-12 else 0.0)


def write_report(folder: Path) -> dict[str, Any]:
    """Write ``summary.json`` and ``plots.png`` from ``metrics.jsonl``; returns the summary. Raises OSError.

    The summary has a linear fit of the score against sqrt(KL), because arXiv 2204.05862 finds this relation linear.
    """
    rows = read_metrics(folder / "metrics.jsonl")
    tail = rows[-max(1, len(rows) // 10) :]
    line = fit_line([max(0.0, row["kl"]) ** 0.5 for row in rows], [row["score"] for row in rows])
    summary: dict[str, Any] = {
        "steps": len(rows),
        "first_score": rows[0]["score"],
        "last_score": sum(row["score"] for row in tail) / len(tail),
        "last_kl": sum(row["kl"] for row in tail) / len(tail),
        "reward_scale": rows[-1]["reward_scale"],
        "truncated_share": sum(row["truncated_share"] for row in rows) / len(rows),
        "last_truncated_share": sum(row["truncated_share"] for row in tail) / len(tail),
        "last_explained_variance": sum(row["explained_variance"] for row in tail) / len(tail),
        "last_response_tokens": sum(row["response_tokens"] for row in tail) / len(tail),
        "score_against_sqrt_kl": None if line is None else line._asdict(),
        "seconds": {part: sum(row[f"seconds_{part}"] for row in rows) for part in ("rollout", "scoring", "update")},
    }
    write_text(folder / "summary.json", json.dumps(summary, indent=2) + "\n")
    _plot(rows, folder / "plots.png")
    return summary


def _plot(rows: Sequence[dict[str, float]], path: Path) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6), layout="constrained")
    FigureCanvasAgg(figure)
    for position, (name, title) in enumerate(_PANELS.items(), 1):
        axes = figure.add_subplot(2, 3, position)
        axes.plot([row["step"] for row in rows], [row[name] for row in rows], color="#b3261e", linewidth=1.5)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25)
    with atomic_file(path) as file:
        figure.savefig(file, dpi=110, format="png")
